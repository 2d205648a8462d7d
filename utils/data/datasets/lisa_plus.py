"""LISA++: instance segmentation, reasoning step by step, dialogues and captions with masks in their texts.

Four data sets of one name, each a JSON list about images of COCO 2017: `reason_seg_plus/LISA_Plus_COT.json` or
`LISA_Plus_COT/data.json`, and so on. An entry:

    instance             img_path, "English Question", ID (of its masks), points {id: {"label name", "points"}}
    cot, caption         image_path, "English Question", "English Answer", info {id: {"polygon"}}
    conversations        img_pth, output ("<person>: ... <robot>: ..."), info {id: {"polygon"}}

Answers refer to masks as in mask_references.py. A mask that an entry refers to and does not hold is taken from COCO's
own file by its id, if it is one of the same image. The authors describe no format: this is what independent readers
of the files expect. Yang et al., "LISA++: An Improved Baseline for Reasoning Segmentation with Large Language Model",
2023, arXiv 2312.17240.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.errors import UserError
from model.text.conversation import Conversation
from model.text.phrases import pick
from model.text.special_tokens import Text
from utils.data.base import Dataset, FlagError
from utils.data.coco_file import id_of
from utils.data.coverage import MISSING
from utils.data.datasets.muse import with_masks
from utils.data.files import FolderListing, first_holding, locate, read_annotations
from utils.data.frames import Drawn
from utils.data.lisa_entries import (
    CocoMask,
    Turn,
    image_name,
    named,
    pairs_in,
    read_coco_masks,
    segmentations_of,
    targets_of,
    text_in,
    wanted_by,
)
from utils.data.mask_references import Id, References, ids_in, parse_references, write_answer
from utils.data.masks import decode_segmentation
from utils.data.polygons import short
from utils.data.types import MultiTargetSample, Recipe, Sample, UnusableItemError

INSTANCE = "instance"
PARTS = {  # word for the flag -> the name of its file
    INSTANCE: "LISA_Plus_Instance_Seg",
    "cot": "LISA_Plus_COT",
    "conversations": "LISA_Plus_Conversations",
    "caption": "LISA_Plus_Caption",
}
REQUESTS = {INSTANCE: "reasoning_request", "cot": "explaining_request"}  # what is added to a question
IMAGES = "refer_seg/images/mscoco/images"
FOLDERS = ("coco/train2017", f"{IMAGES}/train2017", "coco/val2017", f"{IMAGES}/val2017")
COCO_FOLDER = "coco/annotations"
MAX_MENTIONS = 1000  # masks of an entry; each of them is as large as the image
WITHOUT_MASK = "masks that are referred to are missing or empty; the words stay, without [SEG]"
ASKED_WITH = "questions that refer to a mask are left out with their answers: nobody can ask with a mask"
UNPAIRED = "turns that are no question of <person> with an answer of <robot> are left out"


@dataclass(frozen=True)
class LisaItem:
    """One entry of the file."""

    entry: int  # its position
    path: Path  # the image
    turns: tuple[Turn, ...]
    segmentations: Mapping[Id, Any]  # of the masks that the answers refer to, as far as there are any


@dataclass(frozen=True, kw_only=True)
class LisaFacts:
    """What is known of all entries together."""

    num_masks: int
    num_images: int


class LisaPlus(Dataset):
    """`LISA++|PART|SPLIT`. Entries with instances are also evaluated, as questions with several targets.

    Only `train` is published; `val` is a file of one's own, `LISA_Plus_Instance_Seg_val.json`.
    """

    name = "LISA++"
    source = "reason_seg"
    unit = "entries"
    part_names: ClassVar = tuple(PARTS)  # the first is the default

    def __init__(self, dataset_dir: str | Path, split: str, part: str = INSTANCE) -> None:
        self.part = part
        self.name = f"{type(self).name}|{part}"
        super().__init__(dataset_dir, split)
        name, suffix = PARTS[part], "" if split == "train" else f"_{split}"
        folders = ("reason_seg_plus/", "", "Senqiao/")
        names = [f"{folder}{name}{end}{suffix}.json" for folder in folders for end in ("", "/data")]
        told = "" if split == "train" else f"|{split} (only {self.name}|train is published)"
        self.file = locate(self.dataset_dir, names, f"{self.name}{told}")
        places = [self.dataset_dir / folder for folder in (*FOLDERS, COCO_FOLDER)]
        self.items, self.facts = self.indexed(
            self._build_index, (LisaItem, LisaFacts), [self.file], folders=places
        )

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> LisaPlus:
        """Fields are the part, by default the instances, and the split: `LISA++|cot`, `LISA++|instance|val`."""
        known = ", ".join(f"{cls.name}|{part}" for part in PARTS)
        if len(fields) > 2:
            raise FlagError(f"write {cls.name}|PART|SPLIT, got {'|'.join((cls.name, *fields))}")
        part = fields[0] if fields else INSTANCE
        if part not in PARTS:
            raise FlagError(f"{cls.name} has no part {part!r}; known: {known}")
        if part != INSTANCE and not training:
            raise FlagError(f"{cls.name}|{part} is for training only; {cls.name}|{INSTANCE} is evaluated")
        return cls(dataset_dir, fields[1] if len(fields) > 1 else cls.default_split(training=training), part)

    def _build_index(self) -> tuple[list[LisaItem], LisaFacts]:
        """The entries whose image is there, with their usable turns and the masks that these refer to."""
        content = read_annotations(self.file)
        if not isinstance(content, list):
            raise UserError(f"{self.file}: a list of entries, got {short(content)}")
        images = [FolderListing(self.dataset_dir / folder) for folder in FOLDERS]
        read: list[LisaItem] = []
        for position, entry in enumerate(content):
            with self.entry(self.where(position)):
                name = image_name(entry)
                image = first_holding(images, name)
                if image is None:
                    self.drop(self.where(position), f"no image {images[0].folder / name}", MISSING)
                    continue
                turns = self.turns_of(entry, position)
                masks = segmentations_of(entry, wanted_by(turns))
                read.append(LisaItem(position, image, turns, masks))
        del content
        missing: dict[str, set[Id]] = {}  # by the folder of the images
        for item in read:
            if lacking := set(wanted_by(item.turns)) - item.segmentations.keys():
                missing.setdefault(item.path.parent.name, set()).update(lacking)
        coco = read_coco_masks(FolderListing(self.dataset_dir / COCO_FOLDER), missing)
        items = []
        for item in read:
            with self.entry(self.where(item.entry)):
                items.append(self.completed(item, coco))
        self.check_index(len(items), self.file)
        return items, LisaFacts(
            num_masks=sum(len(ids_in(turn.answer)) for item in items for turn in item.turns),
            num_images=len({item.path for item in items}),
        )

    def where(self, position: int) -> str:
        return f"{self.file}, entry {position}"

    def turns_of(self, entry: Mapping[str, Any], position: int) -> tuple[Turn, ...]:
        """The turns of an entry that can be asked; UserError if there are none."""
        if self.part == INSTANCE:
            question, targets = text_in(entry, "English Question"), targets_of(entry)
            check_number(len(targets))
            return (Turn(question, (References(targets), ".")),)
        if self.part != "conversations":
            pairs = [(text_in(entry, "English Question"), text_in(entry, "English Answer"))]
        else:
            pairs, is_whole = pairs_in(text_in(entry, "output"))
            if not is_whole:
                self.note(UNPAIRED, self.where(position))
        turns = []
        for question, answer in pairs:
            if ids_in(parse_references(question)):
                self.note(ASKED_WITH, self.where(position))
            else:
                turns.append(Turn(question, parse_references(answer)))
        check_number(num_mentions := sum(len(ids_in(turn.answer)) for turn in turns))
        if not num_mentions:
            raise UserError("no answer to a plain question refers to a mask")
        return tuple(turns)

    def completed(self, item: LisaItem, coco: Mapping[Id, CocoMask]) -> LisaItem:
        """An entry with COCO's masks where it has none; UserError if it lacks some that it cannot do without."""
        wanted = wanted_by(item.turns)
        image_id = id_of(item.path.stem)
        of_coco = {
            mask: coco[mask]
            for mask in wanted
            if mask not in item.segmentations and mask in coco and coco[mask].image_id == image_id
        }
        found = {**item.segmentations, **{mask: each.segmentation for mask, each in of_coco.items()}}
        found = {mask: found[mask] for mask in wanted if found.get(mask)}
        if lacking := [mask for mask in wanted if mask not in found]:
            if self.part == INSTANCE or not found:
                file = self.dataset_dir / COCO_FOLDER / f"instances_{item.path.parent.name}.json"
                raise UserError(
                    f"masks {short(lacking)} are neither in it nor, as masks of its image, in {file}"
                )
            self.note(WITHOUT_MASK, self.where(item.entry))
        turns = item.turns
        if self.part == INSTANCE:  # the words of other answers are in their texts
            names = {mask: each.name for mask, each in of_coco.items()}
            turns = tuple(replace(turn, answer=named(turn.answer, names)) for turn in turns)
        return replace(item, turns=turns, segmentations=found)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_images(self) -> int:
        return self.facts.num_images

    @property
    def num_annotations(self) -> int:
        return self.facts.num_masks

    def files(self) -> Iterator[Path]:
        return (item.path for item in self.items)

    def __getitem__(self, index: int) -> MultiTargetSample:
        item = self.items[index]
        image = self.image(item)
        (turn,) = item.turns
        masks = self.masks(item, image)
        return MultiTargetSample(
            image=image,
            questions=(turn.question,),
            masks=(np.stack([masks[mask] for mask in ids_in(turn.answer)]),),
            source=str(item.path),
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One entry in one conversation: a question and its answer, or a whole dialogue."""
        item = self.items[index]
        image = self.image(item)
        masks = self.masks(item, image)
        usable = {mask: drawn for mask, drawn in masks.items() if drawn.any()}
        if not usable or (self.part == INSTANCE and len(usable) < len(masks)):
            raise UnusableItemError(
                item.path, f"masks {short([m for m in masks if m not in usable])} are empty"
            )
        if len(usable) < len(masks):
            self.note(WITHOUT_MASK, self.where(item.entry))
        request = f" {pick(REQUESTS[self.part], rng)}" if self.part in REQUESTS else ""
        texts: list[Text] = []
        mentioned: list[Id] = []
        for turn in item.turns:
            parts, ids = write_answer(turn.answer, usable)
            texts += [(turn.question + request,), with_masks(parts, recipe.format.seg)]
            mentioned += ids
        return Sample(
            image=image,
            conversations=(Conversation.of(*texts),),
            masks=np.stack([usable[mask] for mask in mentioned]),
            source=str(item.path),
        )

    def image(self, item: LisaItem) -> np.ndarray:
        """(height, width, 3) uint8, in the frame that the annotations fit."""
        return self.load_image(item.path, drawn=Drawn.of(item.segmentations.values()))

    def masks(self, item: LisaItem, image: np.ndarray) -> dict[Id, np.ndarray]:
        """Every mask of an entry, (height, width) uint8."""
        height, width = image.shape[:2]
        masks = {}
        for mask, segmentation in item.segmentations.items():
            with self.usable(item.path, f"entry {item.entry}, mask {mask}: "):
                masks[mask] = decode_segmentation(segmentation, height, width)
        return masks


def check_number(num_mentions: int) -> None:
    """UserError where an entry mentions more masks than fit into the memory."""
    if num_mentions > MAX_MENTIONS:
        raise UserError(f"{num_mentions} references to masks; an entry may have {MAX_MENTIONS}")
