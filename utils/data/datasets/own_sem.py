"""Own semantic data: a folder of images, label PNGs and classes.txt.

    PATH/classes.txt                line n, counted from 0, names the class of label value n
    PATH/images/*, labels/*.png     pairs by stem; or PATH/{train,val}/{images,labels}/

Two words in classes.txt are not classes: pixels of a value `ignore` are left out of training and evaluation (as are
255, and 65535 in 16-bit PNGs, when the list is shorter); pixels of a value `nothing` belong to none of the classes.
utils/data/class_file.py reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from model.errors import UserError
from utils.common.label_values import IGNORE
from utils.data import storage
from utils.data.class_file import IGNORED_VALUES, read_class_file
from utils.data.datasets.own import WHOLE, OwnFlag, find_path
from utils.data.files import names_in
from utils.data.semantic import SemanticDataset, values_in
from utils.data.types import UnusableItemError

logger = logging.getLogger(__name__)

NUM_LOOKED_AT = 64  # labels that are read to see whether all of them are masks of 0 and 255
BORDER, MIN_BORDER = 0.02, 4  # half width of an ignored border: fraction of the shorter side, and pixels


class OwnSemantic(SemanticDataset):
    """`own_sem:PATH|SPLIT|exhaustive=true`: labels are exhaustive by default.

    A folder with splits has one folder per split, of any name; without a split in the flag, training uses train/ and
    evaluation val/. A folder without splits is used as a whole.
    """

    name = "own_sem"
    source = "own_sem"
    is_own = True
    ignored_hint = "; 255 is ignored: masks of 0 and 255 must be masks of 0 and 1"

    def __init__(self, dataset_dir: str | Path, flag: OwnFlag, *, training: bool = False) -> None:
        self.name = flag.name
        self.exhaustive = self.knows_absent = flag.is_exhaustive(default=True)
        self.root = find_path(flag.path, dataset_dir, flag.name)
        self.class_file = read_class_file(self.root / "classes.txt")
        self.classes, self.id_table = self.class_file.classes, self.class_file.id_table
        split = find_split(self.root, flag, self.default_split(training=training))
        self.splits = (split,)
        super().__init__(self.root, split)
        self.check_masks()

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> OwnSemantic:
        """From the path and the fields after it: ("./my_data", "val", "exhaustive=false")."""
        return cls(dataset_dir, OwnFlag.parse(cls.name, fields, ("exhaustive",)), training=training)

    def find_pairs(self) -> Iterator[tuple[Path, Path]]:
        folder = self.root if self.split == WHOLE else self.root / self.split
        images, labels = folder / "images", folder / "labels"
        for wanted in (images, labels):
            if not storage.is_folder(wanted):
                raise FileNotFoundError(
                    f"{self.name} needs the folder {wanted}; {folder} holds {names_in(folder)}"
                )
        yield from self.pair_by_stem(images, labels)

    def absent_classes(self, label: np.ndarray) -> list[int]:
        """Empty if labels are not exhaustive, or if ignored pixels may hide a whole object."""
        if not self.exhaustive or may_hide_object(label == IGNORE) or self.shows_ignored_alone(label):
            return []
        return super().absent_classes(label)

    def shows_ignored_alone(self, label: np.ndarray) -> bool:
        """Whether a label has no class, but pixels of an ignored value, such as 255, that classes.txt does not list.

        Ignored borders surround objects; ignored pixels in a label without objects mark something else.
        """
        listed = self.id_table[: self.class_file.num_values]
        is_listed = bool((listed == IGNORE).any())
        return not is_listed and bool((label == IGNORE).any()) and not values_in(label, len(self.classes))

    def check_masks(self) -> None:
        """Warn if labels are masks of 0 and 255, in which 255 marks an object but is ignored.

        Stops reading at the first label with another value. Raises UserError if value 0 is not a class either.
        """
        num_looked_at = min(len(self.pairs), NUM_LOOKED_AT)
        masks: list[Path] = []
        for index in np.linspace(0, len(self.pairs) - 1, num_looked_at).astype(int):
            path = self.pairs[index][1]
            try:
                values = {*values_in(self.read_values(path))}
            except (OSError, UserError):
                continue  # reported when it is drawn
            marked = values - {0}
            if len(marked) > 1 or any(not self.is_ignored_unasked(value) for value in marked):
                return
            masks += [path] if marked else []
        if not masks:
            return
        (value,) = {*values_in(self.read_values(masks[0]))} - {0}
        found = f"{self.name}: the only values of the labels are 0 and {value}, as in {masks[0]}"
        cure = (
            f"{value} is ignored; if it marks an object, save the object as the number of its line in "
            f"{self.root / 'classes.txt'}, such as 1"
        )
        if self.id_table[0] >= len(self.classes) and 2 * len(masks) >= num_looked_at:
            raise UserError(f"{found}: no pixel has a class, as {cure}")
        logger.warning("%s: %s", found, cure)

    def is_ignored_unasked(self, value: int) -> bool:
        """Whether a label value is ignored although classes.txt does not list it."""
        return value in IGNORED_VALUES and value >= self.class_file.num_values

    def partly_labelled(self, absent: Sequence[int]) -> tuple[int, ...]:
        if self.exhaustive:
            return ()
        return tuple(sorted(set(range(len(self.classes))) - set(absent)))

    def class_ids(self, values: np.ndarray, path: Path) -> np.ndarray:
        try:
            return super().class_ids(values, path)
        except UnusableItemError as problem:
            first = self.class_file.first_value
            cure = (
                f"value n is line n, counted from {first}, of {self.root / 'classes.txt'}; add lines, or correct the "
                "label"
            )
            raise UnusableItemError(path, f"{problem.reason}; {cure}") from None


def may_hide_object(ignored: np.ndarray) -> bool:
    """Whether an ignored region is thicker than an ignored border around objects.

    Args:
        ignored: (height, width) bool.

    Returns:
        True when the distance of some ignored pixel to the nearest other pixel exceeds BORDER of the shorter side and
        MIN_BORDER. The borders of Pascal VOC are 5 pixels wide, so their middle is 3 pixels away.
    """
    if not ignored.any():
        return False
    framed = np.pad(
        ignored.astype(np.uint8), 1
    )  # a strip along the edge of the image is as thick as it looks
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_5)
    return bool(distance.max() > max(BORDER * min(ignored.shape), MIN_BORDER))


def find_split(root: Path, flag: OwnFlag, default: str) -> str:
    """The split of a flag, `default` if it names none; WHOLE for a folder without splits."""
    divided = any(storage.is_folder(root / name) for name in ("train", "val"))
    if not divided and flag.split in ("", WHOLE):
        return WHOLE
    split = flag.split or default
    if not storage.is_folder(root / split):
        hint = "" if divided else f"; it has no splits: leave out |{split} to use it as a whole"
        raise FileNotFoundError(
            f"{flag.name}|{split} needs the folder {root / split}; {root} holds {names_in(root)}{hint}"
        )
    return split
