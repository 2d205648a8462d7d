"""Pretraining texts of a scene: captions, questions, boxes as text; and which patches they refer to."""

from dataclasses import dataclass

import numpy as np

from model.text.conversation import Conversation
from utils.toy.expressions import descriptions
from utils.toy.language import absent_expressions, caption, expressions, questions, reasoning_questions
from utils.toy.pretrain.clip import PATCH, SIDE
from utils.toy.pretrain.common import NUM_LABELS, Square, patch_histogram
from utils.toy.scene import CLASSES, Scene, Thing

GRID = SIDE // PATCH
CAPTION_REQUESTS = ("Describe the image.", "What is in this picture?", "Write a caption.", "What do you see?")
BOX_ANSWERS = (
    "{}", "It is at {}.", "Sure, it is at {}.", "The box is {}.", "Here it is: {}.", "It is {}.", "Sure, {}.",
    "The result is {}.", "That would be {}.", "The answer is {}.", "Sure, it is {}.",
)  # fmt: skip
BOX_REQUESTS = (
    "Where exactly is {}?", "Give the box of {}.", "What are the bounds of {}?", "Find {}.", "Point to {}.",
    "Please show {}.", "Locate {} in this image.", "Can you find {} in this image?", "Can you mark {}?",
    "I am looking for {}.", "Which part of the picture is {}?",
)  # fmt: skip
CELL_REQUESTS = ("What is at column {} row {}?", "Name the thing at column {} row {}.")
MAX_TURNS = 14
PRESENCE_REQUESTS = ("Do you see {}?", "Can you see {}?", "Does the picture show {}?")


@dataclass(frozen=True)
class Spoken:
    """The referent of a phrase."""

    share: np.ndarray  # (patches,) float32, the fraction of each patch that it covers
    box: np.ndarray | None = (
        None  # (4,) float32, left, top, right, bottom as fractions of the square; only of a single thing
    )


Phrases = dict[str, Spoken]  # text of the expression -> referent


def conversation(
    scene: Scene, rng: np.random.Generator, square: Square, phrases_of: Phrases | None = None
) -> Conversation:
    """Several turns about a scene: a caption or none, then questions in random order.

    The expressions that the turns contain are added to `phrases_of`.
    """
    said: Phrases = {} if phrases_of is None else phrases_of
    turns: list[tuple[str, str]] = list(questions(scene, rng))
    turns = [turns[k] for k in rng.permutation(len(turns))[:6]]
    turns += _box_turns(scene, rng, square, said)
    turns += _cell_turns(rng, square) + _presence_turns(scene, rng, square, said)
    turns += _reasoning_turns(scene, rng, square, said)
    turns = [turns[k] for k in rng.permutation(len(turns))][:MAX_TURNS]
    if rng.random() < 0.4:
        request = CAPTION_REQUESTS[int(rng.integers(len(CAPTION_REQUESTS)))]
        turns = [(request, caption(scene, rng)), *turns[: len(turns) // 2]]
    return Conversation.of(*[text for turn in turns for text in turn])


def _box_turns(
    scene: Scene, rng: np.random.Generator, square: Square, said: Phrases
) -> list[tuple[str, str]]:
    """Questions for the box of an expression, answered as left, top, right, bottom in cells of the patch grid."""
    turns = []
    names = [thing.name for thing in scene.things]
    # First those that a name alone does not identify.
    order = sorted(rng.permutation(len(names)), key=lambda number: names.count(names[number]) == 1)
    for number in order[:6]:
        thing: Thing = scene.things[number]
        for text in _of_two_kinds(scene, thing, rng):
            request = BOX_REQUESTS[int(rng.integers(len(BOX_REQUESTS)))]
            said[text] = _spoken(square, int(number))
            box = (np.array(thing.box) - [0, 0, 1, 1]) * square.scale + np.array(square.offset * 2)
            cells = np.clip(box // PATCH, 0, GRID - 1).astype(int)
            answer = BOX_ANSWERS[int(rng.integers(len(BOX_ANSWERS)))]
            turns.append((request.format(text), answer.format("".join(str(cell) for cell in cells))))
    return turns


def _of_two_kinds(scene: Scene, thing: Thing, rng: np.random.Generator) -> list[str]:
    """Up to two expressions, of distinct kinds drawn uniformly, however many texts a kind has."""
    of_kind = {item.kind: item.text for item in descriptions(scene, thing, rng)}
    kinds = list(of_kind)
    texts = [of_kind[kinds[k]] for k in rng.permutation(len(kinds))[:2]]
    return [text if rng.random() < 0.25 else f"the {text}" for text in texts]


def _spoken(square: Square, number: int) -> Spoken:
    box = np.array(square.scene.things[number].box) * square.scale + np.array(square.offset * 2)
    share = patch_histogram(square.thing == number + 1, PATCH, 2)[:, 1]
    return Spoken(share, (box / SIDE).astype(np.float32))


def _cell_turns(rng: np.random.Generator, square: Square) -> list[tuple[str, str]]:
    shares = patch_histogram(square.label, PATCH, NUM_LABELS)
    turns = []
    for _ in range(2):
        column, row = (int(value) for value in rng.integers(0, GRID, 2))
        share = shares[row * GRID + column]
        if share.max() > 0.7 and share.argmax() < len(CLASSES):
            request = CELL_REQUESTS[int(rng.integers(len(CELL_REQUESTS)))]
            turns.append((request.format(column, row), CLASSES[int(share.argmax())]))
    return turns


def _presence_turns(
    scene: Scene, rng: np.random.Generator, square: Square, said: Phrases
) -> list[tuple[str, str]]:
    """Questions of presence; half of the expressions have a target, half have none."""
    turns = []
    for text in absent_expressions(scene, rng, 2):
        said[text] = Spoken(np.zeros(GRID**2, np.float32))
        turns.append((text, "no"))
    for number in rng.permutation(len(scene.things))[:2]:
        texts = expressions(scene, scene.things[number], rng)
        if texts:
            turns.append((texts[int(rng.integers(len(texts)))], "yes"))
            said[turns[-1][0]] = _spoken(square, int(number))
    requests = rng.integers(len(PRESENCE_REQUESTS), size=len(turns))
    return [
        (PRESENCE_REQUESTS[int(request)].format(text), answer)
        for request, (text, answer) in zip(requests, turns, strict=True)
    ]


def _reasoning_turns(
    scene: Scene, rng: np.random.Generator, square: Square, said: Phrases
) -> list[tuple[str, str]]:
    """Questions that name no class, answered with class names."""
    asked = [puzzle for puzzle in reasoning_questions(scene, rng) if puzzle.is_sentence][:2]
    for puzzle in asked:
        indices = [CLASSES.index(name) for name in puzzle.names]
        share = patch_histogram(np.isin(square.label, indices), PATCH, 2)[:, 1]
        said[puzzle.question] = Spoken(share)
    return [(puzzle.question, " and ".join(f"the {name}" for name in puzzle.names)) for puzzle in asked]
