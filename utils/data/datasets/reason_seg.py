"""ReasonSeg: questions that need reasoning, with polygons of their targets.

reason_seg/ReasonSeg/SPLIT/NAME.jpg + NAME.json: `text` (questions), `is_sentence`, `shapes` (labelme polygons
with `label` and `points`; see labelme.py). explanatory/train.json: [{image, query, outputs}] explains some answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.text.conversation import Conversation
from model.text.sequence import reasoning_conversation
from utils.data.base import Dataset, sample_up_to
from utils.data.coverage import UNLABELLED, well_formed
from utils.data.files import locate, log_skipped, read_annotations
from utils.data.frames import Drawn
from utils.data.images import images_in
from utils.data.labelme import IGNORED, TARGET, draw_shapes, open_shapes, read_shapes
from utils.data.polygons import short
from utils.data.storage import is_named
from utils.data.types import ReasonSample, Recipe, Sample, UnusableItemError

LINE = "a polygon of fewer than three points, drawn as a line, as LISA's reader does"
ENCODING = "cp1252"  # of the published files that are not UTF-8


@dataclass(frozen=True)
class ReasonItem:
    """One annotated image."""

    image_path: Path
    json_path: Path
    explanation: str | None


class ReasonSeg(Dataset):
    """ReasonSeg (LISA): evaluation asks the first question of an image, training draws from all."""

    name = "ReasonSeg"
    source = "reason_seg"
    splits = ("train", "val", "test")

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        root = locate(self.dataset_dir, ("reason_seg/ReasonSeg",), self.name)
        folder = locate(root, (split,), self.name)
        explanations = read_explanations(root / "explanatory" / "train.json") if split == "train" else {}
        self.items: list[ReasonItem] = []
        images, others = images_in(folder)
        annotations = {path for path, _ in others if path.suffix == ".json"}
        image_of: dict[Path, Path] = {}
        for path in images:
            json_path = path.with_suffix(".json")
            if json_path in image_of and json_path in annotations:
                raise UserError(
                    f"{image_of[json_path]} and {path} both belong to {json_path}; remove or rename one"
                )
            image_of[json_path] = path
            if json_path in annotations:
                self.items.append(ReasonItem(path, json_path, explanations.get(path.name)))
            else:
                self.drop(path, f"no {json_path.name} beside it", UNLABELLED)
        log_skipped(folder, [path for path, _ in others if path.suffix != ".json"])
        self.check_index(len(self.items), folder)

    def __len__(self) -> int:
        return len(self.items)

    def files(self) -> Iterator[Path]:
        for item in self.items:
            yield from (item.image_path, item.json_path)

    def __getitem__(self, index: int) -> ReasonSample:
        item = self.items[index]
        image, annotation, label = self.read(item)
        return ReasonSample(
            image=image,
            question=annotation["text"][0],
            is_sentence=bool(annotation["is_sentence"]),
            mask=(label == TARGET).astype(np.uint8),
            ignore=label == IGNORED,
            source=str(item.image_path),
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One image with up to `num_questions` of its questions, each in a conversation of its own.

        Images with an explanation are answered in one of three ways, the same for all questions of the sample: by
        text only, without masks (with probability `recipe.explanatory`), or by a mask with or without the
        explanation.
        """
        item = self.items[index]
        image, annotation, label = self.read(item)
        mask = (label == TARGET).astype(np.uint8)
        if not mask.any():
            raise UnusableItemError(item.json_path, "the mask is empty")
        questions = sample_up_to(rng, annotation["text"], recipe.num_questions)
        is_sentence = bool(annotation["is_sentence"])
        explanation = item.explanation
        by_text_alone = explanation is not None and rng.random() < recipe.explanatory
        if explanation is not None and by_text_alone:
            conversations = [text_conversation(question, is_sentence, explanation) for question in questions]
        else:
            if explanation is not None and rng.random() >= 0.5:
                explanation = None
            conversations = [
                reasoning_conversation(question, is_sentence, explanation, rng, recipe.format)
                for question in questions
            ]
        num_masks = 0 if by_text_alone else len(conversations)
        return Sample(
            image=image,
            conversations=tuple(conversations),
            masks=np.repeat(mask[None], num_masks, axis=0),
            source=str(item.image_path),
        )

    def read(self, item: ReasonItem) -> tuple[np.ndarray, Mapping[str, Any], np.ndarray]:
        """Image, annotation, and label (height, width) uint8: TARGET, IGNORED, or 0 for the rest."""
        with self.usable(item.json_path):
            annotation = read_annotations(
                item.json_path, keys=("text", "is_sentence", "shapes"), fallback=ENCODING
            )
            if annotation["is_sentence"] not in (True, False):
                raise UserError(f"'is_sentence' is true or false, got {short(annotation['is_sentence'])}")
            texts = annotation["text"]
            if (
                not isinstance(texts, list)
                or not texts
                or not all(isinstance(t, str) and t.strip() for t in texts)
            ):
                raise UserError(f"'text' must be a list of questions, got {short(texts)}")
            shapes = read_shapes(annotation["shapes"])
            drawn = Drawn.of([[shape.polygon] for shape in shapes])
            for where in open_shapes(shapes):
                self.note(
                    LINE,
                    f"{item.json_path}, {where}",
                )
            has_target = any(shape.value == TARGET for shape in shapes)
            if not has_target:
                self.note("no shape marks a target: nothing is the right answer", item.json_path)
        image = self.load_image(item.image_path, drawn=drawn)
        with self.usable(item.json_path):
            height, width = image.shape[:2]
            label = draw_shapes(shapes, height, width)
            if has_target and TARGET not in label:
                raise UserError(
                    f"no target covers a pixel of the image, which is {width} wide and {height} high; are the points "
                    "pixels of this image?"
                )
        return image, annotation, label


def text_conversation(question: str, is_sentence: bool, explanation: str) -> Conversation:
    """A question answered in words, without a mask."""
    asked = question.strip() if is_sentence else f"What is {question.strip()} in this image?"
    return Conversation.of(asked, explanation.strip())


def read_explanations(path: Path) -> dict[str, str]:
    """Image file name -> explanation; empty if the file does not exist, as it is optional."""
    if not is_named(path):
        return {}
    explanations = {}
    with well_formed(path):
        for entry in read_annotations(path, fallback=ENCODING):
            name, text = entry.get("image"), entry.get("outputs")
            if isinstance(name, str) and isinstance(text, str) and text.strip():
                explanations[name] = text
    return explanations
