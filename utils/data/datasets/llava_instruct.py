"""Conversations about images, answered in words, as LLaVA stores them; LLaVA-Instruct-150k.

A file is [{id, image, conversations: [{from: "human" | "gpt", value}]}], where the first human turn also holds
"<image>" as a placeholder. LLaVA-Instruct-150k is llava_dataset/llava_instruct_150k.json, about the images of
coco/train2017.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.errors import UserError
from model.text.conversation import Conversation
from utils.data.base import Dataset
from utils.data.coverage import MISSING
from utils.data.files import FolderListing, locate, read_annotations
from utils.data.images import read_image
from utils.data.polygons import short
from utils.data.types import Recipe, Sample, VqaSample

IMAGE_PLACEHOLDER = "<image>"
SPEAKERS = ("human", "gpt")
TEXT_ONLY = "without an image"  # why an entry is left out, as reports count it


@dataclass(frozen=True)
class Dialogue:
    """One image with questions and answers about it, in alternation."""

    image: str  # its name in the data set's folder of images
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DialogueFacts:
    """What is known of all dialogues together."""

    num_questions: bytes  # of each dialogue, int32
    num_images: int


class DialogueDataset(Dataset):
    """Base: training uses whole dialogues; evaluation asks each question by itself and has the expected answer."""

    source = "vqa"
    unit = "entries"
    may_have_no_image: ClassVar[bool] = False  # some entries are text only; they are counted and left out

    def __init__(self, dataset_dir: str | Path, split: str) -> None:
        super().__init__(dataset_dir, split)
        path, self.folder = self.find_files()
        self.dialogues, facts = self.indexed(
            lambda: self._build_index(path), (Dialogue, DialogueFacts), [path], folders=[self.folder]
        )
        # (num_dialogues,): how many questions there are up to the end of each dialogue
        self._num_questions = np.frombuffer(facts.num_questions, dtype=np.int32).cumsum()
        self._num_images = facts.num_images

    def path_of(self, dialogue: Dialogue) -> Path:
        """Its image file."""
        return self.folder / dialogue.image

    def _build_index(self, path: Path) -> tuple[list[Dialogue], DialogueFacts]:
        """The dialogues whose image is there."""
        content = read_annotations(path)
        if not isinstance(content, list):
            raise UserError(f"{path}: a list of dialogues, got {short(content)}")
        dialogues: list[Dialogue] = []
        files = FolderListing(self.folder)
        for position, entry in enumerate(content):
            if self.may_have_no_image and isinstance(entry, Mapping) and not entry.get("image"):
                self.left_out[TEXT_ONLY] += 1
                continue
            label = f"{path}, entry {position}"
            with self.entry(label):
                texts, name = dialogue_texts(entry), image_name(entry)
                if name in files:
                    dialogues.append(Dialogue(name, texts))
                else:
                    self.drop(label, f"no image {self.folder / name}", MISSING)
        self.check_index(len(dialogues), path)
        counts = np.array([len(dialogue.texts) // 2 for dialogue in dialogues], dtype=np.int32)
        num_images = len({dialogue.image for dialogue in dialogues})
        return dialogues, DialogueFacts(num_questions=counts.tobytes(), num_images=num_images)

    @abstractmethod
    def find_files(self) -> tuple[Path, Path]:
        """The file of this split, and the folder that its image names start from."""

    def __len__(self) -> int:
        return int(self._num_questions[-1])

    @property
    def num_items(self) -> int:
        return len(self.dialogues)

    @property
    def num_images(self) -> int:
        return self._num_images

    def files(self) -> Iterator[Path]:
        return map(self.path_of, self.dialogues)

    def __getitem__(self, index: int) -> VqaSample:
        position = range(len(self))[index]
        number = int(np.searchsorted(self._num_questions, position, side="right"))
        dialogue = self.dialogues[number]
        turn = 2 * (position - int(self._num_questions[number])) + len(dialogue.texts)
        question, answer = dialogue.texts[turn : turn + 2]
        path = self.path_of(dialogue)
        return VqaSample(image=read_image(path), question=question, answer=answer, source=str(path))

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One whole dialogue; no masks."""
        dialogue = self.dialogues[index]
        path = self.path_of(dialogue)
        with self.usable(path):
            image = read_image(path)
        return Sample(
            image=image,
            conversations=(Conversation.of(*dialogue.texts),),
            masks=np.zeros((0, *image.shape[:2]), dtype=np.uint8),
            source=str(path),
        )


class LlavaInstruct(DialogueDataset):
    """LLaVA-Instruct-150k. The published file has one split, train.

    A held-out split may lie beside it, as llava_instruct_150k_val.json with images in coco/val2017.
    """

    name = "llava_instruct_150k"

    def find_files(self) -> tuple[Path, Path]:
        suffix = "" if self.split == "train" else f"_{self.split}"
        path = locate(self.dataset_dir, (f"llava_dataset/llava_instruct_150k{suffix}.json",), self.name)
        return path, locate(self.dataset_dir, (f"coco/{self.split}2017",), self.name)


def image_name(entry: Mapping[str, Any]) -> str:
    """The name of an entry's image; UserError if it is no text."""
    if not isinstance(entry["image"], str):
        raise UserError(f"'image' is {short(entry['image'])}; it is the name of a file")
    return entry["image"]


def dialogue_texts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of human and assistant without the image placeholder; UserError if they do not alternate."""
    if not isinstance(entry, Mapping):
        raise UserError(f"an entry has 'image' and 'conversations', got {short(entry)}")
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
    if any(not text or text.isspace() for text in texts):
        raise UserError("an empty turn")
    return tuple(texts)
