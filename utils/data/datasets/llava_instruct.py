"""LLaVA-Instruct-150k: conversations about COCO images, answered in words.

llava_dataset/llava_instruct_150k.json: [{id, image, conversations: [{from: "human" | "gpt", value}]}], where
the first human turn also holds "<image>" as a placeholder. Images are those of coco/train2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.text.conversation import Conversation
from utils.data.base import MISSING, Dataset
from utils.data.files import FolderListing, locate, read_annotations
from utils.data.images import read_image
from utils.data.polygons import short
from utils.data.types import Recipe, Sample, VqaSample

IMAGE_PLACEHOLDER = "<image>"
SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Dialogue:
    """One image with questions and answers about it, in alternation."""

    path: Path
    texts: tuple[str, ...]


class LlavaInstruct(Dataset):
    """Training uses whole dialogues; evaluation asks each question by itself and has the expected answer.

    The published file has one split, train. A held-out split may lie beside it, as llava_instruct_150k_val.json with
    images in coco/val2017.
    """

    name = "llava_instruct_150k"
    source = "vqa"
    unit = "entries"

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        suffix = "" if split == "train" else f"_{split}"
        path = locate(self.dataset_dir, (f"llava_dataset/llava_instruct_150k{suffix}.json",), self.name)
        folder = locate(self.dataset_dir, (f"coco/{split}2017",), self.name)
        self.dialogues: list[Dialogue] = []
        files = FolderListing(folder)
        for position, entry in enumerate(read_annotations(path)):
            try:
                texts = dialogue_texts(entry)
                is_missing = entry["image"] not in files
            except (KeyError, TypeError, AttributeError, ValueError) as problem:
                self.drop(f"{path}, entry {position}", f"{type(problem).__name__}: {problem}")
                continue
            if is_missing:
                self.drop(f"{path}, entry {position}", f"no image {folder / entry['image']}", MISSING)
            else:
                self.dialogues.append(Dialogue(folder / entry["image"], texts))
        self.check_index(len(self.dialogues), path)
        self.questions = [
            (dialogue, turn) for dialogue in self.dialogues for turn in range(0, len(dialogue.texts), 2)
        ]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def num_items(self) -> int:
        return len(self.dialogues)

    @property
    def num_images(self) -> int:
        return len({dialogue.path for dialogue in self.dialogues})

    def __getitem__(self, index: int) -> VqaSample:
        dialogue, turn = self.questions[index]
        question, answer = dialogue.texts[turn : turn + 2]
        return VqaSample(
            image=read_image(dialogue.path), question=question, answer=answer, source=str(dialogue.path)
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One whole dialogue; no masks."""
        dialogue = self.dialogues[index]
        with self.usable(dialogue.path):
            image = read_image(dialogue.path)
        return Sample(
            image=image,
            conversations=(Conversation.of(*dialogue.texts),),
            masks=np.zeros((0, *image.shape[:2]), dtype=np.uint8),
            source=str(dialogue.path),
        )


def dialogue_texts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of human and assistant without the image placeholder; UserError if they do not alternate."""
    turns = entry["conversations"]
    if not turns or len(turns) % 2:
        raise UserError(f"{len(turns)} turns; a dialogue has as many answers as questions")
    texts = []
    for position, turn in enumerate(turns):
        speaker = SPEAKERS[position % 2]
        if turn["from"] != speaker:
            raise UserError(f"turn {position} is from {short(turn['from'])}, not from {speaker!r}")
        texts.append(
            turn["value"].replace(IMAGE_PLACEHOLDER, "").strip() if speaker == "human" else turn["value"]
        )
    if not all(text.strip() for text in texts):
        raise UserError("an empty turn")
    return tuple(texts)
