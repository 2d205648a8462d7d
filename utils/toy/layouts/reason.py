"""ReasonSeg: implicit questions about an image, and labelme polygons of their targets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.toy.language import Reasoning, reasoning_questions
from utils.toy.layouts.common import Drawn, SceneSource, folder, write_jpg, write_json
from utils.toy.layouts.polygons import labelme_shapes
from utils.toy.scene import THINGS

MAX_QUESTIONS = 3
THING_WEIGHT = 3.0
EXPLAINED = 0.5  # fraction of the training images that have an entry in the explanatory file
SENTENCES = 0.6  # fraction of the images whose questions are whole sentences


def choose(drawn: Drawn) -> list[Reasoning]:
    """One target of the scene and up to three questions for it, all sentences or all phrases."""
    asked = reasoning_questions(drawn.scene, drawn.rng)
    targets = sorted({item.names for item in asked})
    # Prefer things to stuff, which is in nearly every image.
    weights = np.asarray([THING_WEIGHT if set(names) & set(THINGS) else 1.0 for names in targets])
    names = targets[int(drawn.rng.choice(len(targets), p=weights / weights.sum()))]
    is_sentence = bool(drawn.rng.random() < SENTENCES)
    # Two puzzles can have one target (car, and car with bus); their explanations differ.
    same = [item for item in asked if item.names == names and item.is_sentence == is_sentence]
    return [item for item in same if item.explanation == same[0].explanation][:MAX_QUESTIONS]


def write_reason(root: Path, source: SceneSource) -> None:
    """reason_seg/ReasonSeg/{train,val}/*.{jpg,json} and explanatory/train.json."""
    explanations = write_splits(root, source, ("train", "val"))
    write_json(root / "reason_seg" / "ReasonSeg" / "explanatory" / "train.json", explanations)


def write_reason_test(root: Path, source: SceneSource) -> None:
    """reason_seg/ReasonSeg/test/*.{jpg,json}."""
    write_splits(root, source, ("test",))


def write_splits(root: Path, source: SceneSource, splits: Sequence[str]) -> list[dict[str, str]]:
    """Images and annotations of some splits; returns the explanations of some of the training images."""
    explanations = []
    for split in splits:
        target = folder(root / "reason_seg" / "ReasonSeg" / split)
        for drawn in source.scenes("reason", split):
            asked = choose(drawn)
            name = f"{split}_{drawn.number:06d}.jpg"
            write_jpg(target / name, drawn.scene.image)
            write_json(
                (target / name).with_suffix(".json"),
                {
                    "text": [item.question for item in asked],
                    "is_sentence": asked[0].is_sentence,
                    "shapes": labelme_shapes(asked[0].mask, asked[0].ignore, name),
                },
            )
            if split == "train" and drawn.rng.random() < EXPLAINED:
                query, outputs = asked[0].question, asked[0].explanation
                explanations.append({"image": name, "query": query, "outputs": outputs})
    return explanations
