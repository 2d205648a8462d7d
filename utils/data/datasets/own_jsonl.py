"""Own data as conversations with masks: a file with one line per image, its conversation and its masks.

PATH is one jsonl file, or a folder with train.jsonl and val.jsonl. A line:

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "Where is the crack?"},
     {"from": "gpt", "value": "It is [SEG]."}], "masks": [[[3, 4, 30, 4, 30, 9]]]}

Mask k belongs to the k-th [SEG] of the answers: a list of polygons, a COCO run-length code, or the name of a PNG with
0 outside of the mask. [NEG] in an answer says that something is not in the image, and has no mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.text.conversation import Conversation
from model.text.format import SequenceFormat
from model.text.special_tokens import NEG, SEG, Special, Text
from utils.data import storage
from utils.data.base import Dataset
from utils.data.coverage import MISSING, well_formed
from utils.data.datasets.own import OwnFlag, decode_own_mask, find_images, find_split_file, image_folders
from utils.data.datasets.own_jsonl_lines import Line, read_lines, sizes_told
from utils.data.files import FolderListing, leaves_folder
from utils.data.frames import Drawn
from utils.data.image_names import Alike, find_file
from utils.data.images import read_label
from utils.data.masks import union
from utils.data.polygons import STRAY_PART, form_of
from utils.data.types import Recipe, ReferringSample, Sample


@dataclass(frozen=True, kw_only=True)
class LineFacts:
    """What is known of all lines together."""

    questions: bytes  # int32: the places of the lines that can be evaluated
    num_images: int
    has_no_target: bool  # some of these has none


class OwnJsonl(Dataset):
    """`own_jsonl:PATH|SPLIT|images=FOLDER`. Training uses every line as it is written, with or without masks.

    Evaluation asks the lines with a single question, as written; the target is the union of the line's masks. Lines
    with several turns, or without [SEG] and [NEG], are for training only.
    """

    name = "own_jsonl"
    source = "own_jsonl"
    is_own = True
    unit = "lines"

    def __init__(self, dataset_dir: str | Path, flag: OwnFlag, *, training: bool = False) -> None:
        self.name = flag.name
        self.anywhere = flag.anywhere
        default = self.default_split(training=training)
        self.file, split = find_split_file(flag, dataset_dir, default, ".jsonl")
        self.splits = (split,)
        super().__init__(dataset_dir, split)
        folders = image_folders(flag, self.file, dataset_dir)
        self.lines, facts = self.indexed(
            lambda: self._read_index(flag, folders),
            (Line, LineFacts),
            [self.file],
            flag.anywhere,
            folders=folders,
        )
        self.questions = np.frombuffer(facts.questions, dtype=np.int32)  # (num_questions,): places in `lines`
        self._num_images = facts.num_images
        self.has_no_target = facts.has_no_target
        self.beside = FolderListing(self.file.parent)
        if not training:
            self.left_out["for training only"] = len(self.lines) - len(self.questions)
        if not training and not len(self.questions):
            raise UserError(
                f"{self.name}: none of the {len(self.lines)} lines of {self.file} is a single question answered with "
                "[SEG] or [NEG], so there is nothing to evaluate; use it for training, or add such lines"
            )

    def _read_index(self, flag: OwnFlag, folders: Sequence[Path]) -> tuple[list[Line], LineFacts]:
        """The lines whose image is there, and what is known of all of them."""
        with well_formed(self.file):
            lines = read_lines(self.file)
        images = find_images(flag, self.file, [line.image for line in lines], folders)
        if images.respelled:
            name, file = next(iter(images.respelled.items()))
            self.note(f"file names of {self.file.name} read as others, {name!r} as {file!r}", images.folder)
        for line in lines:
            if mark := line.near_mark:
                self.note(
                    f"an answer holds {mark!r}, which is plain text; is {SEG} or {NEG} meant?",
                    self.where(line),
                )
        usable = []
        for line in lines:
            if line.image in images:
                usable.append(line)
            else:
                why = f"no image {images.path(line.image)}"
                if line.image in images.ambiguous or leaves_folder(line.image):
                    why += f"; {images.why_not(line.image)}"
                self.drop(self.where(line), why, MISSING)
        self.check_index(len(usable), self.file)
        sizes = sizes_told(usable)
        found = [replace(line, path=images.path(line.image), size=sizes.get(line.image)) for line in usable]
        questions = [place for place, line in enumerate(found) if line.is_question]
        return found, LineFacts(
            questions=np.array(questions, dtype=np.int32).tobytes(),
            num_images=len({line.image for line in found}),
            has_no_target=any(not found[place].masks for place in questions),
        )

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> OwnJsonl:
        """From the path and the fields after it: ("./talk.jsonl", "images=./photos")."""
        return cls(dataset_dir, OwnFlag.parse(cls.name, fields, ("images", "anywhere")), training=training)

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def num_items(self) -> int:
        return len(self.lines)

    @property
    def num_used(self) -> int:
        return len(self.lines) - self.left_out["for training only"]

    @property
    def num_images(self) -> int:
        return self._num_images

    @property
    def num_annotations(self) -> int:
        return len(self.lines)

    def files(self) -> Iterator[Path]:
        for line in self.lines:
            yield line.path
            for mask in line.masks:
                with suppress(UserError):  # reading the line says what is wrong
                    if isinstance(mask, str):
                        yield self.mask_path(mask)

    def __getitem__(self, index: int) -> ReferringSample:
        line = self.lines[int(self.questions[index])]
        image, masks = self.read(line)
        return ReferringSample(
            image=image,
            expressions=(line.texts[0],),
            masks=union(masks, *image.shape[:2])[None],
            no_target=(not len(masks),),
            as_written=True,
            source=str(line.path),
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One line as it is written."""
        line = self.lines[index]
        image, masks = self.read(line)
        answered = [
            with_tokens(text, recipe.format) if position % 2 else text
            for position, text in enumerate(line.texts)
        ]
        return Sample(
            image=image,
            conversations=(Conversation.of(*answered),),
            masks=masks,
            source=str(line.path),
        )

    def where(self, line: Line) -> str:
        return f"{self.file}, line {line.number}"

    def mask_path(self, name: str) -> Path:
        """The file of a mask, whose name is relative to the folder of the jsonl file."""
        path = self.file.parent / name
        leaves = leaves_folder(name) and not self.anywhere
        if storage.is_file(path) and not leaves:
            return path
        found = find_file(name, self.beside, Alike(self.beside))
        if found is None and leaves:
            raise UserError(
                f"{name!r} leads out of {self.file.parent}; copy the mask there, or allow such names: |anywhere=true"
            )
        return self.file.parent / (found or name)

    def read(self, line: Line) -> tuple[np.ndarray, np.ndarray]:
        """Image (height, width, 3) and masks (num_masks, height, width), uint8.

        Raises UnusableItemError with the line, and the number of the mask at fault.
        """
        written = []  # PNG masks as arrays: their size, like a run-length code's, tells the frame of a turned image
        for number, mask in enumerate(line.masks):
            with self.usable(self.where(line), f"masks[{number}]: "):
                written.append(read_mask(self.mask_path(mask)) if isinstance(mask, str) else mask)
        drawn = Drawn.of(mask for mask in written if not isinstance(mask, np.ndarray))
        drawn = replace(
            drawn, sizes=drawn.sizes + tuple(m.shape for m in written if isinstance(m, np.ndarray))
        )
        # Polygons have no size of their own; masks of other lines may tell that of the image.
        told = None if drawn.sizes else line.size
        if told is not None:
            drawn = replace(drawn, sizes=(told,))
        with self.usable(self.where(line)):
            image = self.load_image(line.path, drawn=drawn)
            if told not in (None, image.shape[:2]):
                raise UserError(
                    f"{line.image} is {image.shape[:2]} (height, width), and masks of it are of {told}; is it the "
                    "image that was annotated?"
                )
        height, width = image.shape[:2]
        masks = np.zeros((len(written), height, width), dtype=np.uint8)
        for number, mask in enumerate(written):
            with self.usable(self.where(line), f"masks[{number}]: "):
                if form := form_of(mask):
                    self.note(f"{form}; read as meant", self.where(line))
                stray = partial(self.note, STRAY_PART, self.where(line))
                masks[number] = sized_mask(mask, height, width, on_stray=stray)
        return image, masks


def with_tokens(answer: str, format: SequenceFormat) -> Text:
    """An answer with [SEG] and [NEG] replaced by the tokens of `format`; a format without NEG drops [NEG]."""
    token_of = {SEG: format.seg, NEG: format.neg}
    pieces: list[str] = []
    for piece in re.split(r"(\[SEG\]| ?\[NEG\])", answer):
        mark = piece.strip()
        if mark not in token_of:
            pieces.append(piece)
        elif token_of[mark] is not None:
            pieces += [piece[: piece.index(mark)], Special(token_of[mark])]
    return tuple(piece for piece in pieces if piece)


def read_mask(path: Path) -> np.ndarray:
    """A PNG mask as (height, width) uint8, 1 inside. UserError if it has not exactly one value besides 0."""
    if not storage.is_file(path):
        raise UserError(f"no file {path}; names of masks are relative to the folder of the jsonl file")
    values = read_label(path)
    inside = np.unique(values[values > 0])
    if len(inside) > 1:
        raise UserError(f"{path} holds the values {inside[:5].tolist()}; a mask has one value besides 0")
    if not len(inside):
        raise UserError(f"{path} is empty; say that something is not in the image with {NEG}, without a mask")
    return (values > 0).astype(np.uint8)


def sized_mask(mask: Any, height: int, width: int, on_stray: Callable[[], None] | None = None) -> np.ndarray:
    """A mask as (height, width) uint8; UserError if it has another size."""
    if not isinstance(mask, np.ndarray):
        return decode_own_mask(mask, height, width, on_stray)
    if mask.shape != (height, width):
        raise UserError(
            f"is {mask.shape} (height, width), its image {(height, width)}; save it as large as the image"
        )
    return mask
