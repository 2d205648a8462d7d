"""Short questions about a toy scene, each with the only correct answer."""

from collections.abc import Callable, Iterator

import numpy as np

from utils.toy.expressions import (
    EXTREMES,
    NUMBERS,
    absent_expressions,
    beside,
    expressions,
    pick,
    place_of,
    plural,
)
from utils.toy.scene import CLASSES, STUFF, Scene

Question = tuple[str, str]

LINE_MARGIN = 0.035  # a centre this close to a line of the 3x3 grid is in no definite cell
MIN_STUFF_FRACTION = 0.004  # stuff below this fraction of the pixels is neither asked about nor called absent
MAJORITY = 0.7  # fraction of a cell's pixels that a class needs to cover it
MAX_COUNT = 4
SUPERLATIVES = {word for words, _, _ in EXTREMES for word in words} | {"biggest", "largest", "smallest"}
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")
# Other ADE20K classes, which cannot be confused with anything in this world.
NEVER_SEEN = (
    "bed", "cabinet", "table", "curtain", "chair", "painting", "sofa", "shelf", "mirror", "armchair",
    "desk", "wardrobe", "bathtub", "cushion", "sink", "fireplace", "refrigerator", "pool table",
    "pillow", "bookcase", "toilet", "flower", "book", "stove", "computer", "swivel chair", "towel",
    "chandelier", "television", "clothes", "bottle", "buffet", "stool", "barrel", "basket", "waterfall",
    "bag", "minibike", "cradle", "oven", "food", "stairs", "microwave", "pot", "bicycle", "dishwasher",
    "blanket", "sculpture", "vase", "tray", "fan", "plate", "monitor", "radiator", "clock",
)  # fmt: skip


def cell_of(x: float, y: float) -> str:
    """The cell of a 3x3 grid, "upper left" to "lower right", of a place in fractions of the image."""
    row, column = ROWS[min(int(3 * y), 2)], COLUMNS[min(int(3 * x), 2)]
    return "middle" if row == column == "middle" else f"{row} {column}"


def _on_a_line(x: float, y: float) -> bool:
    return any(abs(value - line / 3) < LINE_MARGIN for value in (x, y) for line in (1, 2))


def _asked(name: str) -> str:
    if name in STUFF and name != "mountain":
        return name if name != "sea" else "the sea"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """As many present names as absent ones."""
    share = np.bincount(scene.label.ravel(), minlength=len(CLASSES)) / scene.label.size
    present = [name for name, part in zip(CLASSES, share, strict=True) if part >= MIN_STUFF_FRACTION]
    absent = [name for name, part in zip(CLASSES, share, strict=True) if part == 0]
    num_each = min(int(rng.integers(2, 4)), len(present), len(absent))
    asked = [(str(name), "yes") for name in rng.permutation(present)[:num_each]]
    unseen = [str(name) for name in rng.permutation(absent)[:num_each]]
    if rng.random() < 0.3:
        unseen[0] = pick(rng, NEVER_SEEN)
    for name, answer in asked + [(name, "no") for name in unseen]:
        templates = (
            f"is there {_asked(name)} in the picture?", f"is there {_asked(name)}?",
            f"do you see {_asked(name)} in this image?", f"can you see {_asked(name)}?",
            f"does the image show {_asked(name)}?",
        )  # fmt: skip
        yield pick(rng, templates), answer


def _ask_expression_presence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """The same with colours and places: one present thing, one absent."""
    thing = pick(rng, scene.things)
    there, missing = expressions(scene, thing, rng), absent_expressions(scene, rng, 1)
    for texts, answer in ((there, "yes"), (missing, "no")):
        if texts:
            words = texts[0].removeprefix("the ")
            words = f"the {words}" if words in STUFF else words
            article = "" if words.startswith("the ") else "an " if words[0] in "aeiou" else "a "
            if words.split()[0] in SUPERLATIVES:  # "is there a left car?" is not English
                continue
            yield pick(rng, ("is there {}?", "do you see {}?")).format(article + words), answer


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    coloured = [thing for thing in scene.things if thing.colour]
    for index in rng.permutation(len(coloured))[:2]:
        thing = coloured[index]
        texts = [text for text in expressions(scene, thing, rng) if f" {thing.colour}" not in f" {text}"]
        if texts:
            words = texts[0].removeprefix("the ")
            template = pick(rng, ("what colour is the {}?", "which colour does the {} have?"))
            if thing.name == "person":
                template = "what colour does the {} wear?"
            yield template.format(words), str(thing.colour)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    counts = {name: sum(thing.name == name for thing in scene.things) for name in scene.present}
    counts = {name: count for name, count in counts.items() if 1 <= count <= MAX_COUNT}
    several = [name for name, count in counts.items() if count > 1]
    if counts:
        name = pick(rng, several if several and rng.random() < 0.6 else list(counts))
        templates = (f"how many {plural(name)} are there?", f"how many {plural(name)} do you see?",
                     f"count the {plural(name)}.")  # fmt: skip
        yield pick(rng, templates), NUMBERS[counts[name]]


def _ask_position(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    clear = [thing for thing in scene.things if not _on_a_line(*place_of(scene, thing))]
    for index in rng.permutation(len(clear))[:2]:
        texts = [text for text in expressions(scene, clear[index], rng) if " at the " not in text]
        if texts:
            words = texts[0].removeprefix("the ")
            template = pick(rng, ("where is the {}?", "in which part of the picture is the {}?"))
            yield template.format(words), cell_of(*place_of(scene, clear[index]))


def _ask_side(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Which of two things is further to one side, and on which side one is of the other."""
    order = rng.permutation(len(scene.things))
    for first, second in zip(order[::2], order[1::2], strict=False):
        one, two = scene.things[first], scene.things[second]
        is_right = beside(scene, 0, 1, one, two)
        texts = expressions(scene, one, rng), expressions(scene, two, rng)
        if is_right is None or one.name == two.name or not all(texts):
            continue
        left, right = (two, one) if is_right else (one, two)
        names = [min(candidates, key=len).removeprefix("the ") for candidates in texts]
        if rng.random() < 0.5:
            side, answer = pick(rng, (("left", left.name), ("right", right.name)))
            yield f"which is further to the {side}, the {names[0]} or the {names[1]}?", answer
        else:
            yield f"is the {names[0]} left or right of the {names[1]}?", "right" if is_right else "left"
        return


def _ask_extreme(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    side, direction = pick(rng, (("left", -1), ("right", 1)))
    for thing in scene.things:
        if all(beside(scene, 0, direction, thing, other) for other in scene.things if other is not thing):
            yield (
                pick(rng, (f"what is on the far {side}?", f"which thing is furthest to the {side}?")),
                thing.name,
            )


def _ask_on(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """What one kind of thing is on a kind of stuff, and on what stuff a thing is."""
    for stuff in rng.permutation(sorted({thing.on for thing in scene.things})):
        names = {thing.name for thing in scene.things if thing.on == stuff}
        if len(names) == 1 and names != {"building"}:
            words = "flies in" if stuff == "sky" else "floats on" if stuff == "sea" else "stands on"
            yield f"what {words} the {stuff}?", next(iter(names))
            break
    standing = [
        thing for thing in scene.things if thing.name != "building" and thing.on not in ("sky", "sea")
    ]
    if standing:
        thing = pick(rng, standing)
        texts = [text for text in expressions(scene, thing, rng) if f" on the {thing.on}" not in text]
        if texts:
            yield f"what is under the {texts[0].removeprefix('the ')}?", thing.on


def _ask_cover(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """What fills most of one cell of the 3x3 grid."""
    height, width = scene.label.shape
    row, column = (int(number) for number in rng.integers(3, size=2))
    rows = slice(row * height // 3, (row + 1) * height // 3)
    columns = slice(column * width // 3, (column + 1) * width // 3)
    counts = np.bincount(scene.label[rows, columns].ravel(), minlength=len(CLASSES))
    if counts.max() >= MAJORITY * counts.sum():
        cell = cell_of((column + 0.5) / 3, (row + 0.5) / 3)
        templates = (f"what covers the {cell} of the picture?", f"what fills the {cell}?")
        yield pick(rng, templates), CLASSES[int(counts.argmax())]


def _ask_place(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    if rng.random() < 0.5:
        yield pick(rng, ("what kind of place is this?", "where was this picture taken?")), scene.place


ASK: tuple[Callable[[Scene, np.random.Generator], Iterator[Question]], ...] = (
    _ask_presence, _ask_expression_presence, _ask_colour, _ask_count, _ask_position, _ask_side, _ask_extreme,
    _ask_on, _ask_cover, _ask_place,
)  # fmt: skip


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """About 14 (question, answer) pairs in random order; an answer is one or two lower-case words."""
    asked = {question: answer for ask in ASK for question, answer in ask(scene, rng)}
    pairs = list(asked.items())
    return [pairs[index] for index in rng.permutation(len(pairs))]
