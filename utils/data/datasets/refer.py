"""Referring expressions: RefCLEF, RefCOCO, RefCOCO+, RefCOCOg, in the layout of the REFER toolkit.

refer_seg/NAME/refs(SPLIT_BY).p is a pickled list of references: ref_id, ann_id (one, or a list), image_id,
split, and sentences, each with its `sent`. refer_seg/NAME/instances.json has COCO's annotations and images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from model.errors import UserError
from model.text.sequence import referring_conversation
from utils.data.base import Dataset, FlagError, sample_up_to
from utils.data.coco_file import id_of
from utils.data.coverage import MISSING, UNLABELLED, well_formed
from utils.data.files import FolderListing, first_holding, locate, read_annotations
from utils.data.frames import Drawn
from utils.data.masks import annotated_size, decode_segmentation, union
from utils.data.pickles import load_plain_pickle
from utils.data.polygons import short
from utils.data.types import Recipe, ReferringSample, Sample, UnusableItemError

NO_TARGET = -1  # annotation id of an expression that matches nothing


@dataclass(frozen=True)
class Expression:
    """A phrase and its target annotations; none if the annotators say that nothing matches."""

    text: str
    ann_ids: tuple[int | str, ...]
    reference: int = 0  # position in the file of the reference that it is a sentence of


@dataclass(frozen=True)
class ReferringItem:
    """One image with all its expressions of the split."""

    path: Path
    size: tuple[int, int] | None  # (height, width) of the annotations, where instances.json states it
    expressions: tuple[Expression, ...]
    segmentations: Mapping[int | str, Any]  # of their targets, by annotation id


@dataclass(frozen=True, kw_only=True)
class ReferringFacts:
    """What is known of all images of the split together."""

    num_references: int
    num_expressions: int
    has_no_target: bool  # some expression has none


class ReferringDataset(Dataset):
    """Base of the referring data sets; a subclass names the files and the splits."""

    source = "refer_seg"
    unit = "references"
    splits_by: ClassVar[
        dict[str, tuple[str, ...]]
    ]  # author of the splits -> the splits; the first is the default
    other_folders: ClassVar[tuple[str, ...]] = ()  # in refer_seg/, besides the data set's name
    image_dir: ClassVar[str] = "mscoco/images/train2014"
    may_have_no_target: ClassVar[bool] = (
        False  # the data set has expressions without a target, if not in this split
    )

    def __init__(self, dataset_dir: str | Path, split: str, split_by: str = "") -> None:
        self.split_by = split_by or next(iter(self.splits_by))
        if self.split_by not in self.splits_by:
            raise FlagError(f"{self.name} has no splits by {split_by!r}; known: {', '.join(self.splits_by)}")
        self.splits = self.splits_by[self.split_by]
        super().__init__(dataset_dir, split)
        folders = tuple(f"refer_seg/{folder}" for folder in (self.name, *self.other_folders))
        root = locate(self.dataset_dir, folders, self.name)
        refs_path = locate(root, self.refs_files(), self.name)
        instances_path = locate(root, ("instances.json",), self.name)
        self.image_folders = self.find_images(root)
        self.items, self.facts = self.indexed(
            lambda: self._build_index(self.read_refs(refs_path), refs_path, instances_path),
            (ReferringItem, ReferringFacts),
            [refs_path, instances_path],
            self.split_by,
            folders=self.image_folders,
        )
        self.has_no_target = self.may_have_no_target or self.facts.has_no_target

    @classmethod
    def open(
        cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False
    ) -> ReferringDataset:
        """Fields are the split, or the author of the splits and the split: `refcoco|testA`, `refcoco|unc|testA`."""
        default = cls.default_split(training=training)
        match list(fields):
            case []:
                return cls(dataset_dir, default)
            case [split_by] if split_by in cls.splits_by:
                return cls(dataset_dir, default, split_by)
            case [split]:
                return cls(dataset_dir, split)
            case [split_by, split]:
                return cls(dataset_dir, split, split_by)
        raise FlagError(f"write {cls.name}|SPLIT_BY|SPLIT, got {'|'.join((cls.name, *fields))}")

    def refs_files(self) -> tuple[str, ...]:
        """The names that the file of references may have; the first that exists is read."""
        return (f"refs({self.split_by}).p",)

    def find_images(self, root: Path) -> tuple[Path, ...]:
        """The folders that its images may be in, at least one; `root` is that of the references."""
        return (locate(self.dataset_dir, (f"refer_seg/images/{self.image_dir}",), self.name),)

    def read_refs(self, path: Path) -> Any:
        return load_plain_pickle(path)

    def is_absent(self, ref: Mapping[str, Any], sentence: Mapping[str, Any]) -> bool:
        """Whether a sentence describes nothing in the image, although its reference may have a target."""
        return False

    def text_of(self, sentence: Mapping[str, Any]) -> str:
        return sentence["sent"].strip()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_used(self) -> int:
        return self.facts.num_references

    @property
    def num_annotations(self) -> int:
        return self.facts.num_expressions

    def files(self) -> Iterator[Path]:
        return (item.path for item in self.items)

    def __getitem__(self, index: int) -> ReferringSample:
        item = self.items[index]
        image = self.load_item_image(item)
        return ReferringSample(
            image=image,
            expressions=tuple(expression.text for expression in item.expressions),
            masks=self.masks(item, item.expressions, image),
            no_target=tuple(not expression.ann_ids for expression in item.expressions),
            references=tuple(expression.reference for expression in item.expressions),
            source=str(item.path),
        )

    def sample_of(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Sample:
        """One image with up to `num_expressions` of its expressions, each in a conversation of its own."""
        item = self.items[index]
        chosen = sample_up_to(rng, item.expressions, recipe.num_expressions)
        image = self.load_item_image(item)
        conversations = tuple(
            referring_conversation(expression.text, bool(expression.ann_ids), rng, recipe.format)
            for expression in chosen
        )
        targets = [expression for expression in chosen if expression.ann_ids]
        masks = self.masks(item, targets, image)
        for expression, mask in zip(targets, masks, strict=True):
            if not mask.any():
                raise UnusableItemError(item.path, f"the mask of {expression.text!r} is empty")
        return Sample(image=image, conversations=conversations, masks=masks, source=str(item.path))

    def expressions_of(self, ref: Mapping[str, Any], position: int) -> list[Expression]:
        """The sentences of a reference that hold any text, with their targets."""
        ann_ids = target_ids(ref["ann_id"])
        # Somebody's own data may say "no target" as gRefCOCO does, in a list.
        if not ann_ids and not self.may_have_no_target and ref["ann_id"] != [NO_TARGET]:
            raise UserError(
                f"'ann_id' is {short(ref['ann_id'])}; every reference of {self.name} has a target"
            )
        return [
            Expression(text, () if self.is_absent(ref, sentence) else ann_ids, position)
            for sentence in ref["sentences"]
            if (text := self.text_of(sentence))
        ]

    def load_item_image(self, item: ReferringItem) -> np.ndarray:
        """(height, width, 3) uint8, in the frame that the annotations of all expressions fit."""
        return self.load_image(item.path, item.size, Drawn.of(item.segmentations.values()))

    def masks(self, item: ReferringItem, expressions: Sequence[Expression], image: np.ndarray) -> np.ndarray:
        """(num_expressions, height, width) uint8: the union of each expression's annotations."""
        height, width = image.shape[:2]
        masks = np.zeros((len(expressions), height, width), dtype=np.uint8)
        for mask, expression in zip(masks, expressions, strict=True):
            with self.usable(item.path, f"annotations {list(expression.ann_ids)}: "):
                parts = (item.segmentations[ann_id] for ann_id in expression.ann_ids)
                mask[:] = union((decode_segmentation(part, height, width) for part in parts), height, width)
        return masks

    def _build_index(
        self, refs: Any, refs_path: Path, instances_path: Path
    ) -> tuple[list[ReferringItem], ReferringFacts]:
        """The split's expressions by image; those without annotation or image file are dropped."""
        with well_formed(instances_path):
            instances = read_annotations(instances_path, keys=("annotations", "images"))
            segmentations = {id_of(a.get("id")): a.get("segmentation") for a in instances["annotations"]}
            images = {id_of(image.get("id")): image for image in instances["images"]}
        if not isinstance(refs, list):
            raise UserError(f"{refs_path}: a list of references, got {short(refs)}")
        folders = [FolderListing(folder) for folder in self.image_folders]
        paths: dict[int, Path] = {}
        expressions: dict[int, list[Expression]] = defaultdict(list)
        num_references = 0
        for position, ref in enumerate(refs):
            label = f"{refs_path}, reference {position}"
            with self.entry(label):
                if not is_in_split(ref["split"], self.split):
                    continue
                found, image_id = self.expressions_of(ref, position), id_of(ref["image_id"])
                ann_ids = dict.fromkeys(ann_id for expression in found for ann_id in expression.ann_ids)
                missing = [ann_id for ann_id in ann_ids if segmentations.get(ann_id) is None]
                image = images.get(image_id, {})
                file_name = image.get("file_name")
                annotated_size(image)  # raises if it is no size
                if missing:
                    self.drop(label, f"no annotation {missing} in {instances_path.name}", UNLABELLED)
                elif file_name is None:
                    self.drop(label, f"no image {image_id} in {instances_path.name}", MISSING)
                elif (path := first_holding(folders, file_name)) is None:
                    self.drop(label, f"no image {self.image_folders[0] / file_name}", MISSING)
                elif not found:
                    self.drop(label, "no expression")
                else:
                    paths[image_id] = path
                    expressions[image_id] += found
                    num_references += 1
        items = [
            ReferringItem(
                path=paths[image_id],
                size=annotated_size(images[image_id]),
                expressions=tuple(expressions[image_id]),
                segmentations={
                    ann_id: segmentations[ann_id] for said in expressions[image_id] for ann_id in said.ann_ids
                },
            )
            for image_id in sorted(expressions, key=lambda image_id: (isinstance(image_id, str), image_id))
        ]
        self.check_index(len(items), refs_path.parent)
        return items, ReferringFacts(
            num_references=num_references,
            num_expressions=sum(len(item.expressions) for item in items),
            has_no_target=any(not said.ann_ids for item in items for said in item.expressions),
        )


def target_ids(ann_id: int | str | Sequence[int | str]) -> tuple[int | str, ...]:
    """The target annotations of a reference: one id, or a list; gRefCOCO writes [-1] if nothing matches."""
    ids = tuple(map(id_of, ann_id if isinstance(ann_id, list | tuple) else [ann_id]))
    if not all(isinstance(each, int | str) for each in ids):
        raise UserError(f"'ann_id' is {short(ann_id)}; it is an annotation's id, or a list of them")
    return () if ids == (NO_TARGET,) else ids


def is_in_split(written: str, wanted: str) -> bool:
    """Whether a reference is in a split. RefCLEF writes "testAB" for what is in both testA and testB."""
    if written == wanted:
        return True
    both_lettered = len(wanted) > len("test") and wanted.startswith("test") and written.startswith("test")
    return both_lettered and wanted[-1] in written[len("test") :]


class RefCoco(ReferringDataset):
    """RefCOCO: short expressions, places allowed ("left guy"); testA people, testB other things."""

    name = "refcoco"
    splits_by: ClassVar = {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")}


class RefCocoPlus(ReferringDataset):
    """RefCOCO+: no words for places; testA people, testB other things."""

    name = "refcoco+"
    splits_by: ClassVar = {"unc": ("train", "val", "testA", "testB")}


class RefCocoG(ReferringDataset):
    """RefCOCOg: longer sentences. The `google` splits share images between train and val; `umd` do not."""

    name = "refcocog"
    splits_by: ClassVar = {"umd": ("train", "val", "test"), "google": ("train", "val")}


class RefClef(ReferringDataset):
    """RefCLEF (ReferIt): SAIAPR TC-12 images, stuff as well as things; masks are run-length codes."""

    name = "refclef"
    splits_by: ClassVar = {
        "unc": ("train", "val", "testA", "testB", "testC"),
        "berkeley": ("train", "val", "test"),
    }
    image_dir = "saiapr_tc-12"
