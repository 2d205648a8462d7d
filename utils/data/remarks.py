"""Remarks on a data set that is usable but looks wrong, collected while it is read; check.py prints them.

None of them is an error. Each says what was seen, how often, where first, and what it may mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from model.text.sequence import ComplexQuery
from utils.data import storage
from utils.data.base import Dataset
from utils.data.class_file import IGNORED_VALUES, no_class_remarks
from utils.data.image_formats import LABEL_FORMATS
from utils.data.semantic import SemanticDataset, values_in
from utils.data.types import (
    EvalSample,
    MultiTargetSample,
    ReasonSample,
    ReferringSample,
    Sample,
    SemanticSample,
)

MAX_NAMED = 8  # names in one remark
DARK = 0.1  # fraction of the range: an image is dark when almost no pixel is brighter
BRIGHT_SHARE = 0.01  # fraction of the pixels that may be brighter
STEP = 4  # brightness is measured on every fourth row and column
LINE_LENGTH = 12  # pixels; shorter thin masks are small objects
MIN_IN_CORNER = 3  # masks; fewer may lie in one corner by chance
NUMBERED = re.compile(r"^\d+\W+\w|\w\W+\d+$")  # "1: ball", "ball,1", "ball 128 0 0"
ERODED = np.ones((3, 3), dtype=np.uint8)  # erosion with it removes what is at most two pixels wide
# Characters of plain names besides letters, digits and combining marks; any other is probably a mistake.
PLAIN = set(" \u0027\u2019()&/.+-")
GARBLED = re.compile(
    "\ufffd|[\u00c2\u00c3][\u0080-\u00bf\u0192\u2018-\u2122]|\u00e2\u20ac"
)  # UTF-8 read as cp1252


class Remarks:
    """Collects remarks on one data set from the label files, samples and evaluation items that the check reads."""

    def __init__(self, dataset: Dataset) -> None:
        self.names = dataset.classes
        self.is_own = dataset.is_own
        self.id_table: np.ndarray | None = None
        self.label_values: set[int] = set()
        self._labels: dict[Path, list[int]] = {}  # label file -> its values
        self._items: set[str] = set()
        self._present: set[str] = set()
        self._colours: dict[
            int, tuple[tuple[int, ...], Path]
        ] = {}  # palette index -> colour, and where it has it
        self._palettes_differ = ""
        self._dark: dict[str, float] = {}
        self._thin: dict[str, int] = {}
        self._num_masks = 0
        self._all_in_corner = (
            True  # every mask so far ends before the middle of its image, in both directions
        )
        if isinstance(dataset, SemanticDataset):
            self.id_table = dataset.id_table
            dataset.on_label = self.see_label

    def see_label(self, path: Path, values: np.ndarray) -> None:
        """Take note of a label file and its stored values (height, width)."""
        found = values_in(values)
        self.label_values.update(found)
        if path not in self._labels:
            self._labels[path] = found
            self._compare_palette(path, found)

    def see_sample(self, sample: Sample) -> None:
        """Take note of a training sample."""
        for conversation in sample.conversations:
            if isinstance(conversation, ComplexQuery):
                self._present.update(conversation.present)
        self._see(sample.source, sample.image, sample.masks)

    def see_item(self, item: EvalSample) -> None:
        """Take note of an evaluation item."""
        if isinstance(item, SemanticSample):
            present = values_in(item.label, len(item.classes))
            self._present.update(item.classes[class_id] for class_id in present)
            masks: Iterable[np.ndarray] = ((item.label == class_id).astype(np.uint8) for class_id in present)
        elif isinstance(item, ReasonSample):
            masks = [item.mask]
        elif isinstance(item, MultiTargetSample):
            masks = [mask for of_question in item.masks for mask in of_question]
        else:
            masks = item.masks if isinstance(item, ReferringSample) else ()
        self._see(item.source, item.image, masks)

    def lines(self, *, saw_all: bool) -> list[str]:
        """The remarks. Absent classes of a published data set are named only if every item was read."""
        remarks = [*self._on_names(), *self._on_labels()]
        if self.names and self._items and (self.is_own or saw_all):
            remarks += self._on_absent_classes(saw_all)
        if self._palettes_differ:
            remarks.append(self._palettes_differ)
        if self._dark:
            path, brightest = next(iter(self._dark.items()))
            remarks.append(
                f"{len(self._dark)} of {len(self._items)} images are darker than a tenth of their range, such as "
                f"{path} (99 % of it is below {brightest:.0%}): do its values use a smaller range than its bit depth?"
            )
        if self._thin:
            remarks.append(
                f"{sum(self._thin.values())} of {self._num_masks} masks are as thin as a line, such as in "
                f"{next(iter(self._thin))}: was an outline or a stroke saved instead of an area?"
            )
        if self._all_in_corner and self._num_masks >= MIN_IN_CORNER:
            remarks.append(
                f"all {self._num_masks} masks lie in the top left quarter of their images: are their coordinates "
                "those of a smaller copy, or percentages?"
            )
        return remarks

    def _see(self, source: str, image: np.ndarray, masks: Iterable[np.ndarray]) -> None:
        if source not in self._items:
            brightest = np.quantile(image[::STEP, ::STEP].max(axis=2), 1 - BRIGHT_SHARE) / 255
            if brightest < DARK:
                self._dark[source] = float(brightest)
            num_thin = 0
            for mask in masks:
                self._num_masks += 1
                num_thin += is_line(mask)
                self._all_in_corner &= is_in_corner(mask)
            if num_thin:
                self._thin[source] = num_thin
        self._items.add(source)

    def _on_names(self) -> list[str]:
        if not self.is_own or not self.names:
            return []
        if self.id_table is None:  # of annotations, not of label values
            remarks = no_class_remarks(self.names, "remove the category")
        else:
            remarks = no_class_remarks(self.names)
        odd = [name for name in self.names if not is_plain(name)]
        garbled = [name for name in self.names if GARBLED.search(name)]
        if garbled:
            remarks.append(
                f"class names look garbled: {listed(garbled)}; was their file read in another encoding?"
            )
        if all(NUMBERED.search(name) for name in self.names):
            remarks.append(
                f"all class names have a number: {listed(self.names)}; if it is an id or a colour, remove it, as "
                "names are asked for as they are written"
            )
            return remarks
        odd = [name for name in odd if name not in garbled]
        if odd:
            remarks.append(
                f"class names with odd characters: {listed(odd)}; they are asked for as they are written"
            )
        return remarks

    def _on_labels(self) -> list[str]:
        """Labels that look like masks of 0 and 255 although 255 is ignored."""
        if self.id_table is None:
            return []
        ignored = {value for value in IGNORED_VALUES if self._class_of(value) is None}
        masks = [
            path
            for path, values in self._labels.items()
            if values[-1] in ignored and {*values} <= {0, values[-1]}
        ]
        if not masks or (not self.is_own and len(masks) < len(self._labels)):
            return []
        return [
            f"{len(masks)} of {len(self._labels)} labels hold only 0 and {self._labels[masks[0]][-1]}, such as "
            f"{masks[0]}: the high value is ignored; if it marks an object, save it as the number of its class"
        ]

    def _class_of(self, value: int) -> str | None:
        """The class of a label value; None if it has none."""
        assert self.id_table is not None
        class_id = int(self.id_table[value]) if value < len(self.id_table) else -1
        return self.names[class_id] if 0 <= class_id < len(self.names) else None

    def _on_absent_classes(self, saw_all: bool) -> list[str]:
        if self.id_table is None:
            present = self._present
        else:
            present = {name for value in self.label_values if (name := self._class_of(value)) is not None}
        missing = [name for name in self.names if name not in present]
        if not missing:
            return []
        seen = "" if saw_all else f" in the {len(self._items)} images read (--all reads every one)"
        return [f"{len(missing)} of {len(self.names)} classes are never present{seen}: {listed(missing)}"]

    def _compare_palette(self, path: Path, values: Sequence[int]) -> None:
        """Remember the colour of each value of a palette image; a second colour for a value is a remark."""
        if self._palettes_differ:
            return
        try:
            with storage.open_file(path) as file, Image.open(file, formats=LABEL_FORMATS) as image:
                palette = image.getpalette() if image.mode == "P" else None
        except Exception:  # a fault was reported when the file was read
            return
        if not palette:
            return
        for value in values:
            colour = tuple(palette[3 * value : 3 * value + 3])
            known, where = self._colours.setdefault(value, (colour, path))
            if colour and known and colour != known:
                self._palettes_differ = (
                    f"palettes differ between files: value {value} has the colour {known} in {where} and {colour} in "
                    f"{path}; labels are read by value, not by colour: do values mean the same in all files?"
                )
                return


def is_line(mask: np.ndarray) -> bool:
    """Whether a mask (height, width) of 0 and 1 is at most two pixels wide everywhere, and long enough for a line."""
    x, y, width, height = cv2.boundingRect(mask)
    if max(width, height) < LINE_LENGTH:
        return False
    inside = np.ascontiguousarray(mask[y : y + height, x : x + width])
    framed = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return not cv2.erode(framed, ERODED).any()


def is_in_corner(mask: np.ndarray) -> bool:
    """Whether a mask (height, width) of 0 and 1 lies in the top left quarter of its image."""
    x, y, width, height = cv2.boundingRect(mask)
    return 2 * (y + height) <= mask.shape[0] and 2 * (x + width) <= mask.shape[1]


def is_plain(name: str) -> bool:
    """Whether a class name has only plain characters and begins with a letter."""
    written = all(character in PLAIN or unicodedata.category(character)[0] in "LNM" for character in name)
    return written and name[:1].isalpha()


def listed(names: Sequence[str]) -> str:
    """The first names, quoted, and the number of the others."""
    more = f" and {len(names) - MAX_NAMED} more" if names[MAX_NAMED:] else ""
    return ", ".join(repr(name) for name in names[:MAX_NAMED]) + more
