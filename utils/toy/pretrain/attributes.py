"""Attributes and relations of each thing of a scene as numbers: the predicates behind the referring expressions.

The published vision encoders learned from captions that distinguish things by place, size and neighbours. The toy
tower learns the same from binary targets, one for each kind of predicate in utils.toy.expressions.
"""

import numpy as np

from utils.toy.expressions import (
    EXTREMES,
    ON_STUFF,
    REGIONS,
    Test,
    beside,
    in_region,
    is_kind,
    most,
    near,
    sized,
)
from utils.toy.scene import THINGS, Scene, Thing

NUM_EXTREMES = len(EXTREMES) + 2  # and biggest, smallest
NUM_RELATIONS = 3  # near, left of, right of
NUM_SIMPLE = len(ON_STUFF) + len(REGIONS)  # unary attributes; the others are comparisons
NUM_ATTRIBUTES = NUM_SIMPLE + 2 * NUM_EXTREMES + NUM_RELATIONS * len(THINGS)


def attributes(scene: Scene) -> np.ndarray:
    """(num_things, NUM_ATTRIBUTES) float32: 1 yes, 0 no, NaN where it is too close to call or undefined.

    In order: what the thing is on; the regions it is in; whether it is the leftmost, rightmost, upper, lower,
    biggest, smallest of its kind, then of its kind and colour (NaN when it is the only one); for each kind of which
    there is one, whether the thing is near, left of, right of it.
    """
    rows = np.full((len(scene.things), NUM_ATTRIBUTES), np.nan, np.float32)
    landmarks = {}
    for name in THINGS:
        members = [thing for thing in scene.things if thing.name == name]
        if len(members) == 1:
            landmarks[name] = members[0]
    for row, thing in zip(rows, scene.things, strict=True):
        answers: list[bool | None] = [thing.on == stuff for stuff in ON_STUFF]
        answers += [in_region(scene, phrase)(thing) for phrase in REGIONS]
        for colour in (None, thing.colour):
            answers += _extremes(scene, thing, is_kind(thing.name, colour))
        for name in THINGS:
            other = landmarks.get(name, thing)
            if other is thing:
                answers += [None] * NUM_RELATIONS
            else:
                sides = [beside(scene, 0, direction, thing, other) for direction in (-1, 1)]
                answers += [near(scene, other)(thing), *sides]
        row[:] = [np.nan if answer is None else answer for answer in answers]
    return rows


def _extremes(scene: Scene, thing: Thing, kind: Test) -> list[bool | None]:
    if sum(bool(kind(other)) for other in scene.things) == 1:
        return [None] * NUM_EXTREMES
    tests = [most(scene, kind, axis, direction) for _, axis, direction in EXTREMES]
    tests += [sized(scene, kind, biggest=True), sized(scene, kind, biggest=False)]
    return [test(thing) for test in tests]
