"""Referring expressions of toy scenes, each verified against the scene before it is used.

A description is a text with a predicate over things: True, False, or None when it is too close to call. An
expression refers to a thing if its predicate is True for it and False for all others; it has no target if the
predicate is False for all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from utils.toy.scene import CLASSES, COLOURED, THINGS, WALLS, Scene, Thing
from utils.toy.shapes import PALETTE

Item = TypeVar("Item")
Test = Callable[[Thing], bool | None]

BESIDE_MARGIN = 0.12  # of the width or height: a smaller difference of centres is too close to call
SIZE_RATIO = 1.25  # of the visible areas
NEAR, FAR = 0.22, 0.36  # distance of centres as a fraction of the image: near below, not near above
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = {"person": "people", "bus": "buses", "bench": "benches"}
# Phrases for what a thing stands on; not used for buildings, whose skyline stands behind the horizon.
ON_STUFF = {
    "grass": ("on the grass",),
    "road": ("on the road",),
    "sand": ("on the sand",),
    "sea": ("on the sea", "in the sea"),
    "sky": ("in the sky",),
}
# phrase: axis, (lowest, highest) of the centre for a certain yes, and the interval outside of which it is a no.
REGIONS: dict[str, tuple[int, tuple[float, float], tuple[float, float]]] = {
    "on the left": (0, (0.0, 0.34), (0.0, 0.46)),
    "on the right": (0, (0.66, 1.0), (0.54, 1.0)),
    "on the far left": (0, (0.0, 0.2), (0.0, 0.32)),
    "on the far right": (0, (0.8, 1.0), (0.68, 1.0)),
    "in the middle": (0, (0.4, 0.6), (0.28, 0.72)),
    "at the top": (1, (0.0, 0.33), (0.0, 0.45)),
    "at the bottom": (1, (0.67, 1.0), (0.55, 1.0)),
}
EXTREMES: tuple[tuple[tuple[str, ...], int, int], ...] = (  # words, axis, direction
    (("left", "leftmost"), 0, -1),
    (("right", "rightmost"), 0, 1),
    (("upper", "top"), 1, -1),
    (("lower", "bottom"), 1, 1),
)


@dataclass(frozen=True)
class Description:
    """A noun phrase without article, and the predicate for what it describes."""

    text: str
    test: Test
    kind: str = "name"  # what distinguishes: name, colour, order, size, place, ground or neighbour


class Group(NamedTuple):
    """An expression of several things."""

    text: str
    things: tuple[Thing, ...]


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of the items, uniformly at random."""
    return items[int(rng.integers(len(items)))]


def plural(name: str) -> str:
    return PLURALS.get(name, f"{name}s")


def place_of(scene: Scene, thing: Thing) -> tuple[float, float]:
    """The centre (x, y) as fractions of the image's width and height."""
    height, width = scene.label.shape
    return thing.centre[0] / width, thing.centre[1] / height


def targets(scene: Scene, description: Description) -> tuple[Thing, ...] | None:
    """The things that a description is true of, or None when one of them is too close to call."""
    answers = [description.test(thing) for thing in scene.things]
    if None in answers:
        return None
    return tuple(thing for thing, answer in zip(scene.things, answers, strict=True) if answer)


def singles_out(scene: Scene, description: Description, thing: Thing) -> bool:
    """Whether a description is true of this thing and certainly of no other."""
    found = targets(scene, description)
    return found is not None and len(found) == 1 and found[0] is thing


def beside(scene: Scene, axis: int, direction: int, thing: Thing, other: Thing) -> bool | None:
    """Whether `thing` lies clearly further in a direction (-1 left or up, 1 right or down) than `other`."""
    gap = direction * (place_of(scene, thing)[axis] - place_of(scene, other)[axis])
    return None if abs(gap) <= BESIDE_MARGIN else bool(gap > 0)


def _noun(name: str, colour: str | None, rng: np.random.Generator | None = None) -> str:
    if colour is None:
        return name
    if name == "person":
        return f"person in {colour}" if rng is None or rng.random() < 0.7 else f"person in a {colour} shirt"
    return f"{colour} {name}"


def is_kind(name: str, colour: str | None) -> Test:
    """Things of a name, and of a colour if one is given."""
    return lambda thing: thing.name == name and (colour is None or thing.colour == colour)


def _all(*tests: Test) -> Test:
    """Conjunction, evaluated lazily: False if any is False, else None if any is None, else True."""

    def test(thing: Thing) -> bool | None:
        doubt = False
        for part in tests:
            answer = part(thing)
            if answer is False:
                return False
            doubt |= answer is None
        return None if doubt else True

    return test


def in_region(scene: Scene, phrase: str) -> Test:
    """Things in one of REGIONS."""
    axis, sure, wide = REGIONS[phrase]

    def test(thing: Thing) -> bool | None:
        position = place_of(scene, thing)[axis]
        if sure[0] <= position <= sure[1]:
            return True
        return None if wide[0] <= position <= wide[1] else False

    return test


def most(scene: Scene, kind: Test, axis: int, direction: int) -> Test:
    """The one of a kind that is clearly further in a direction than every other."""
    rivals = [thing for thing in scene.things if kind(thing)]

    def test(thing: Thing) -> bool | None:
        answers = [beside(scene, axis, direction, thing, other) for other in rivals if other is not thing]
        return False if False in answers else (None if None in answers else True)

    return _all(kind, test)


def sized(scene: Scene, kind: Test, biggest: bool) -> Test:
    """The one of a kind that is clearly bigger, or smaller, than every other."""
    areas = {id(thing): int(thing.mask.sum()) for thing in scene.things if kind(thing)}

    def test(thing: Thing) -> bool | None:
        ratios = [areas[id(thing)] / area for rival, area in areas.items() if rival != id(thing)]
        ratios = ratios if biggest else [1 / ratio for ratio in ratios]
        if any(ratio < 1 / SIZE_RATIO for ratio in ratios):
            return False
        return True if all(ratio > SIZE_RATIO for ratio in ratios) else None

    return _all(kind, test)


def near(scene: Scene, other: Thing) -> Test:
    """Things not far from another."""
    x, y = place_of(scene, other)

    def test(thing: Thing) -> bool | None:
        here = place_of(scene, thing)
        distance = float(np.hypot(here[0] - x, here[1] - y))
        return None if NEAR < distance < FAR else distance <= NEAR

    return test


def _landmarks(scene: Scene, thing: Thing) -> Iterator[tuple[str, Thing]]:
    """Other things that a name, or a colour and a name, singles out."""
    for other in scene.things:
        if other is thing:
            continue
        for colour in (None, other.colour):
            if singles_out(scene, Description("", is_kind(other.name, colour)), other):
                yield f"the {_noun(other.name, colour)}", other
                break


def _describe(
    scene: Scene, name: str, colour: str | None, thing: Thing, rng: np.random.Generator
) -> Iterator[Description]:
    """Candidate descriptions for a thing of a name (and colour); not yet verified."""
    noun, kind = _noun(name, colour, rng), is_kind(name, colour)
    yield Description(noun, kind, "name" if colour is None else "colour")
    if sum(bool(kind(other)) for other in scene.things) > 1:
        for words, axis, direction in EXTREMES:
            yield Description(f"{pick(rng, words)} {noun}", most(scene, kind, axis, direction), "order")
        for words, biggest in ((("biggest", "largest"), True), (("smallest",), False)):
            yield Description(f"{pick(rng, words)} {noun}", sized(scene, kind, biggest), "size")
    for phrase in REGIONS:
        yield Description(f"{noun} {phrase}", _all(kind, in_region(scene, phrase)), "place")
    if name != "building" and thing.on in ON_STUFF:
        yield Description(
            f"{noun} {pick(rng, ON_STUFF[thing.on])}",
            _all(kind, lambda other: other.on == thing.on),
            "ground",
        )
    landmarks = [item for item in _landmarks(scene, thing) if item[1].name != name]
    for index in rng.permutation(len(landmarks))[:2]:
        landmark, other = landmarks[index]
        for words, direction in ((("left of", "to the left of"), -1), (("right of", "to the right of"), 1)):

            def test(this: Thing, other: Thing = other, direction: int = direction) -> bool | None:
                return beside(scene, 0, direction, this, other)

            yield Description(f"{noun} {pick(rng, words)} {landmark}", _all(kind, test), "neighbour")
        closeness = pick(rng, ("next to", "near", "close to"))
        yield Description(f"{noun} {closeness} {landmark}", _all(kind, near(scene, other)), "neighbour")


def descriptions(scene: Scene, thing: Thing, rng: np.random.Generator) -> list[Description]:
    """Every verified description of a thing, in random order."""
    colours = (None,) if thing.colour is None else (None, thing.colour)
    candidates = [item for colour in colours for item in _describe(scene, thing.name, colour, thing, rng)]
    proved = [item for item in candidates if singles_out(scene, item, thing)]
    return [proved[index] for index in rng.permutation(len(proved))]


def expressions(scene: Scene, thing: Thing, rng: np.random.Generator) -> list[str]:
    """Distinct expressions that refer to this thing and no other, in random order; [] if there is none."""
    texts = [
        item.text if rng.random() < 0.25 else f"the {item.text}" for item in descriptions(scene, thing, rng)
    ]
    return list(dict.fromkeys(texts))


def _coloured(name: str, colour: str | None, rng: np.random.Generator) -> Description:
    if name == "boat" and colour == "white":  # every boat has white sails
        colour = "black"
    return Description(_noun(name, colour, rng), is_kind(name, colour))


def _absent(scene: Scene, absent: Sequence[str], rng: np.random.Generator) -> Description:
    """A description that is probably true of nothing; not yet verified. `absent`: classes without a pixel."""
    seen = sorted({thing.name for thing in scene.things})
    coloured = [name for name in seen if name in COLOURED]
    kind = rng.choice(4, p=(0.4, 0.15, 0.35, 0.1))
    name = pick(rng, absent)
    if kind == 2 and coloured:
        name = pick(rng, coloured)
        return _coloured(name, pick(rng, list(PALETTE)), rng)
    if kind == 3 and seen:
        name, phrase = pick(rng, seen), pick(rng, list(REGIONS))
        return Description(f"{name} {phrase}", _all(is_kind(name, None), in_region(scene, phrase)))
    if kind == 1 and name in THINGS:
        palette = PALETTE if name in COLOURED else WALLS if name in ("house", "building") else {}
        return _coloured(name, pick(rng, list(palette)) if palette else None, rng)
    phrase = f" {pick(rng, list(REGIONS))}" if name in THINGS and rng.random() < 0.25 else ""
    return Description(f"{name}{phrase}", is_kind(name, None))


def absent_expressions(scene: Scene, rng: np.random.Generator, n: int) -> list[str]:
    """Up to `n` distinct expressions without a target: another class, colour or place."""
    present = scene.present
    absent = [name for name in CLASSES if name not in present]
    texts: dict[str, None] = {}
    for _ in range(8 * n):
        description = _absent(scene, absent, rng)
        if len(texts) < n and targets(scene, description) == ():
            texts[description.text if rng.random() < 0.25 else f"the {description.text}"] = None
    return list(texts)


def pair_expressions(scene: Scene, rng: np.random.Generator) -> list[Group]:
    """Expressions of several things, in random order: all of a kind, or two named one after the other."""
    groups = []
    for name in sorted({thing.name for thing in scene.things}):
        members = tuple(thing for thing in scene.things if thing.name == name)
        if len(members) == 2:
            groups.append(Group(pick(rng, (f"the two {plural(name)}", f"both {plural(name)}")), members))
        if 2 <= len(members) < len(NUMBERS):
            texts = (f"all {plural(name)}", f"all the {plural(name)}", f"every {name}")
            groups.append(Group(pick(rng, texts), members))
    named = [(thing, expressions(scene, thing, rng)) for thing in scene.things]
    named = [(thing, sorted(texts, key=len)[:3]) for thing, texts in named if texts]
    order = rng.permutation(len(named))
    for first, second in zip(order[::2], order[1::2], strict=False):
        (one, its_texts), (two, other_texts) = named[first], named[second]
        pair = [text.removeprefix("the ") for text in (pick(rng, its_texts), pick(rng, other_texts))]
        groups.append(Group(f"the {pair[0]} and the {pair[1]}", (one, two)))
    return [groups[index] for index in rng.permutation(len(groups))]
