"""Captions of toy scenes; expressions and questions are in the modules beside this one.

Captions are pure functions of the scene and a random generator, and true of the scene's pixels.
"""

import numpy as np

from utils.toy.expressions import (
    NUMBERS,
    Group,
    absent_expressions,
    expressions,
    pair_expressions,
    pick,
    place_of,
    plural,
)
from utils.toy.questions import cell_of, questions
from utils.toy.reasoning import Reasoning, reasoning_questions
from utils.toy.scene import STUFF, Scene, Thing

__all__ = [
    "Group", "Reasoning", "absent_expressions", "caption", "expressions", "pair_expressions", "questions",
    "reasoning_questions",
]  # fmt: skip

MIN_STUFF_FRACTION = 0.01  # of the image; less is not mentioned
VERBS = {
    "grass": ("stands on", "is on"), "road": ("stands on", "is on"), "sand": ("stands on", "is on"),
    "sea": ("floats on", "sails on", "is on"), "sky": ("flies in", "is in"),
}  # fmt: skip


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _noun(thing: Thing) -> str:
    if thing.colour is None:
        return thing.name
    return f"person in {thing.colour}" if thing.name == "person" else f"{thing.colour} {thing.name}"


def _where(scene: Scene, thing: Thing) -> str:
    cell = cell_of(*place_of(scene, thing))
    return "in the middle" if cell == "middle" else f"at the {cell}"


def _place_sentence(scene: Scene, rng: np.random.Generator) -> str:
    share = np.bincount(scene.label.ravel(), minlength=len(STUFF)) / scene.label.size
    present = [name for name, part in zip(STUFF, share, strict=False) if part >= MIN_STUFF_FRACTION]
    ground = [name for name in present if name not in ("sky", "mountain")]
    place = pick(
        rng, (f"{_article(scene.place)} with {{}}", f"this is {_article(scene.place)} with {{}}", "{}")
    )
    words = place.format(_listed([f"the {name}" if name == "sea" else name for name in ground]))
    if "mountain" in present:
        words += pick(rng, (", with a mountain behind", " in front of a mountain", " below a mountain"))
    if "sky" in present:
        words += pick(rng, (" under the sky", " and the sky above", " and sky at the top"))
    return words


def _thing_clause(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    noun, where = _article(_noun(thing)), _where(scene, thing)
    if thing.name != "building" and rng.random() < 0.4:
        clause = f"{noun} {pick(rng, VERBS[thing.on])} the {thing.on}"
        return clause if rng.random() < 0.3 else f"{clause} {where}"
    return f"{noun} {where}"


def _things_sentence(scene: Scene, things: list[Thing], rng: np.random.Generator) -> str:
    clauses = [_thing_clause(scene, thing, rng) for thing in things]
    if len(things) == 1 and rng.random() < 0.3:
        return f"{_where(scene, things[0])} is {_article(_noun(things[0]))}"
    if any(
        verb in clause
        for clause in clauses
        for verb in (" stands ", " floats ", " sails ", " flies ", " is ")
    ):
        return _listed(clauses)
    return pick(rng, ("there is {}", "{}", "we see {}")).format(_listed(clauses))


def _count_sentence(scene: Scene, rng: np.random.Generator) -> str | None:
    counts = {name: sum(thing.name == name for thing in scene.things) for name in sorted(scene.present)}
    several = [name for name, count in counts.items() if 2 <= count < len(NUMBERS)]
    if not several:
        return None
    name = pick(rng, several)
    return f"there are {NUMBERS[counts[name]]} {plural(name)} in the picture"


def _relation_sentence(scene: Scene, rng: np.random.Generator) -> str | None:
    if not scene.things:
        return None
    thing = pick(rng, scene.things)
    told = [text for text in expressions(scene, thing, rng) if " of the " in text or " to the " in text]
    if not told:
        return None
    words = told[0].removeprefix("the ")
    for mark in (
        " to the left of ",
        " to the right of ",
        " left of ",
        " right of ",
        " next to ",
        " close to ",
    ):
        noun, found, landmark = words.partition(mark)
        if found:
            return f"the {noun} is{mark}{landmark}"
    return None


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One to four sentences, lower case: the place, then its things with colours, places and relations."""
    sentences = [_place_sentence(scene, rng)] if rng.random() < 0.85 or not scene.things else []
    order = sorted(scene.things, key=lambda thing: thing.centre[0])
    if rng.random() < 0.5:
        order = [order[index] for index in rng.permutation(len(order))]
    num_listed = int(rng.integers(1, 3)) if order else 0
    order = order[: 4 * num_listed]
    for chunk in np.array_split(np.arange(len(order)), num_listed) if num_listed else ():
        if len(chunk):
            sentences.append(_things_sentence(scene, [order[index] for index in chunk], rng))
    extra = pick(rng, (_count_sentence, _relation_sentence))(scene, rng)
    if extra is not None and len(sentences) < 4:
        sentences.append(extra)
    return " ".join(f"{sentence}." for sentence in sentences)
