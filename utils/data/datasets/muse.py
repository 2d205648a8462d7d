"""MUSE: questions that need reasoning, each about several targets.

muse/muse_SPLIT.json is a list of images: `file_name` (of COCO's train2014) or `coco_url` (train2017, val2017),
height, width, `questions`, `answers` (for each question its annotations: `segmentation`, `category_name`,
`rephrased_name`) and mostly `text_answers`, in which each annotation is followed by "{seg}".
Ren et al., "PixelLM: Pixel Reasoning with Large Multimodal Model", 2024, arXiv 2312.02228.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.text.conversation import Conversation
from model.text.phrases import pick
from model.text.special_tokens import Special, Text
from utils.data.base import Dataset, sample_up_to
from utils.data.coverage import MISSING
from utils.data.files import FolderListing, first_holding, locate, read_annotations
from utils.data.frames import Drawn
from utils.data.masks import annotated_size, decode_segmentation
from utils.data.polygons import short
from utils.data.types import MultiTargetSample, Recipe, Sample, UnusableItemError

SEG_MARK = "{seg}"
UNMATCHED = "questions whose text answer has not one {seg} for each target are left out"
IMAGES = "refer_seg/images/mscoco/images"
FOLDERS = {  # COCO's folder -> where it may be
    "train2014": (f"{IMAGES}/train2014",),
    "train2017": (f"{IMAGES}/train2017", "coco/train2017"),
    "val2017": (f"{IMAGES}/val2017", "coco/val2017"),
}


@dataclass(frozen=True)
class Question:
    """A question, and its targets in the order in which the answer mentions them."""

    text: str
    answer: tuple[str, ...]  # the texts before, between and after the masks
    segmentations: tuple[Any, ...]  # at least one


@dataclass(frozen=True)
class MuseItem:
    """One image with its questions."""

    path: Path
    size: tuple[int, int] | None  # (height, width)
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class MuseFacts:
    """What is known of all images together."""

    num_targets: int


class Muse(Dataset):
    """MUSE. The test split is two files: questions about few targets, and about many."""

    name = "MUSE"
    source = "reason_seg"
    splits = ("train", "val", "test_less", "test_many")
    unit = "entries"

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        names = (f"muse/muse_{split}", f"muse/MUSE_{split}", f"multi_reason_seg/MultiReasonSeg/MUSE_{split}")
        path = locate(self.dataset_dir, [f"{name}.json" for name in names], self.name)
        folders = [self.dataset_dir / place for places in FOLDERS.values() for place in places]
        self.items, facts = self.indexed(
            lambda: self._build_index(path), (MuseItem, MuseFacts), [path], folders=folders
        )
        self._num_annotations = facts.num_targets

    def _build_index(self, path: Path) -> tuple[list[MuseItem], MuseFacts]:
        """The images that are there, with their usable questions."""
        files = {
            folder: [FolderListing(self.dataset_dir / place) for place in places]
            for folder, places in FOLDERS.items()
        }
        content = read_annotations(path)
        if not isinstance(content, list):
            raise UserError(f"{path}: a list of images with questions, got {short(content)}")
        items: list[MuseItem] = []
        for position, entry in enumerate(content):
            label = f"{path}, entry {position}"
            with self.entry(label):
                folder, name = image_of(entry)
                image = first_holding(files[folder], name)
                if image is None:
                    self.drop(label, f"no image {files[folder][0].folder / name}", MISSING)
                elif questions := self.questions_of(entry, label):
                    items.append(MuseItem(image, annotated_size(entry), questions))
                else:
                    self.drop(label, "no question with targets")
        self.check_index(len(items), path)
        num_targets = sum(len(question.segmentations) for item in items for question in item.questions)
        return items, MuseFacts(num_targets=num_targets)

    def questions_of(self, entry: Mapping[str, Any], label: str) -> tuple[Question, ...]:
        """The usable questions of an entry; UserError where the lists do not belong together."""
        questions, answers = entry.get("questions") or [], entry.get("answers") or []
        texts = entry.get("text_answers") or [None] * len(questions)
        if not all(isinstance(each, list) for each in (questions, answers, texts)):
            raise UserError("'questions', 'answers' and 'text_answers' are lists")
        if not len(questions) == len(answers) == len(texts):
            raise UserError(
                f"{len(questions)} questions, {len(answers)} answers, {len(texts)} text answers; these are as many"
            )
        usable = []
        for question, targets, text in zip(questions, answers, texts, strict=True):
            if not isinstance(question, str) or not isinstance(text, str | None):
                raise UserError(
                    f"a question and its text answer are texts, got {short(question)}, {short(text)}"
                )
            parts = text.split(SEG_MARK) if text else parts_of(targets)
            if len(parts) != len(targets) + 1:
                self.note(UNMATCHED, label)
            elif targets and question.strip():
                usable.append(Question(question, tuple(parts), tuple(t["segmentation"] for t in targets)))
        return tuple(usable)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_annotations(self) -> int:
        return self._num_annotations

    def files(self) -> Iterator[Path]:
        return (item.path for item in self.items)

    def __getitem__(self, index: int) -> MultiTargetSample:
        item = self.items[index]
        image = self.image(item)
        return MultiTargetSample(
            image=image,
            questions=tuple(question.text for question in item.questions),
            masks=tuple(self.masks(item, question, image) for question in item.questions),
            source=str(item.path),
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One image with up to `num_questions` of its questions, each in a conversation of its own."""
        item = self.items[index]
        chosen = sample_up_to(rng, item.questions, recipe.num_questions)
        image = self.image(item)
        masks = np.concatenate([self.masks(item, question, image) for question in chosen])
        if not masks.any(axis=(1, 2)).all():
            raise UnusableItemError(item.path, "the mask of a target is empty")
        conversations = tuple(
            Conversation.of(
                f"{question.text.strip()} {pick('reasoning_request', rng)}",
                with_masks(question.answer, recipe.format.seg),
            )
            for question in chosen
        )
        return Sample(image=image, conversations=conversations, masks=masks, source=str(item.path))

    def image(self, item: MuseItem) -> np.ndarray:
        """(height, width, 3) uint8, in the frame that the annotations fit."""
        drawn = Drawn.of(part for question in item.questions for part in question.segmentations)
        return self.load_image(item.path, item.size, drawn)

    def masks(self, item: MuseItem, question: Question, image: np.ndarray) -> np.ndarray:
        """(num_targets, height, width) uint8."""
        height, width = image.shape[:2]
        with self.usable(item.path, f"{short(question.text)}: "):
            return np.stack([decode_segmentation(part, height, width) for part in question.segmentations])


def image_of(entry: Mapping[str, Any]) -> tuple[str, str]:
    """COCO's folder of an entry's image, and its file name."""
    if not isinstance(entry, Mapping):
        raise UserError(f"an entry has 'questions' and 'answers', got {short(entry)}")
    if "file_name" in entry:
        return "train2014", entry["file_name"]
    folder, name = entry["coco_url"].split("/")[-2:]
    if folder not in FOLDERS:
        raise UserError(
            f"'coco_url' is {short(entry['coco_url'])}; its folder is one of {', '.join(FOLDERS)}"
        )
    return folder, name


def parts_of(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answer in the words of the annotations: "the red cup {seg}, the plate {seg}."."""
    names = [target.get("rephrased_name") or target["category_name"] for target in targets]
    return [*(f"{', ' if number else ''}{name} " for number, name in enumerate(names)), "."]


def with_masks(parts: Sequence[str], seg: str) -> Text:
    """The parts of an answer with a SEG token between any two."""
    pieces: list[str | Special] = [parts[0]]
    for part in parts[1:]:
        pieces += [Special(seg), part]
    return tuple(piece for piece in pieces if piece)
