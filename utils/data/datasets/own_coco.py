"""Own data as COCO instances, the format that annotation tools export.

PATH is one json file, or a folder with train.json and val.json: {"images": [{id, file_name, height, width}],
"annotations": [{id, image_id, category_id, segmentation}], "categories": [{id, name}]}. A segmentation is a list of
polygons or a run-length code; categories are the classes. The format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from model.errors import UserError
from utils.common.label_values import IGNORE, NOTHING
from utils.data.class_file import no_class_remarks
from utils.data.class_lists import ClassList
from utils.data.class_masks import ClassMaskDataset
from utils.data.coco_file import classes_in, means_no_class, read_coco, split_groups, spoken_names
from utils.data.coverage import MISSING, well_formed
from utils.data.datasets.own import OwnFlag, decode_own_mask, find_images, find_split_file, image_folders
from utils.data.frames import Drawn
from utils.data.image_names import ImageFiles
from utils.data.masks import annotated_size
from utils.data.polygons import STRAY_PART, EmptyMaskError, form_of
from utils.data.types import SemanticSample, TrueInstances, UnusableItemError

logger = logging.getLogger(__name__)

STRAY_OBJECT = (
    "an object too small to cover a pixel, left out; its class is asked for only if drawn elsewhere"
)


@dataclass(frozen=True, kw_only=True)
class CocoItem:
    """One image and its annotations; classes are indices into the class list."""

    path: Path
    size: tuple[int, int] | None  # (height, width) of the annotations, where the file states it
    objects: tuple[tuple[int, Any], ...]  # class, segmentation
    crowds: tuple[bool, ...]  # one for each object: a group of them drawn as one
    absent: tuple[int, ...]  # classes known not to be in the image
    partly: frozenset[int]  # classes of which not every object is annotated: not asked for

    @property
    def drawn(self) -> Drawn:
        """The extent of the annotations, in the frame that they were drawn in."""
        return Drawn.of(segmentation for _, segmentation in self.objects)

    @property
    def is_askable(self) -> bool:
        """Whether some class is known to be present or absent."""
        return bool(self.absent) or any(class_id not in self.partly for class_id, _ in self.objects)


@dataclass(frozen=True, kw_only=True)
class CocoFacts:
    """What is known of all images together."""

    names: tuple[str, ...]  # of the classes, as written
    spoken: tuple[str, ...]
    num_annotations: int
    knows_absent: bool  # some class is known to be absent from some image


class OwnCoco(ClassMaskDataset):
    """`own_coco:PATH|SPLIT|exhaustive=false|images=FOLDER`: complex queries about the categories of a COCO file.

    A class is the union of its annotations in an image, crowds included. Classes without annotation are taught as
    absent only with `exhaustive=true`, or if the image says so, as in LVIS: `neg_category_ids` are absent; of
    `not_exhaustive_category_ids` some objects are not annotated, so these classes are not asked for.
    """

    name = "own_coco"
    source = "own_coco"
    is_own = True
    val_split = "val"

    def __init__(self, dataset_dir: str | Path, flag: OwnFlag, *, training: bool = False) -> None:
        self.name = flag.name
        self.exhaustive = flag.is_exhaustive(default=False)
        default = self.default_split(training=training)
        self.file, split = find_split_file(flag, dataset_dir, default, ".json")
        self.splits = (split,)
        super().__init__(dataset_dir, split)
        folders = image_folders(flag, self.file, dataset_dir)
        self.items, facts = self.indexed(
            lambda: self._read_index(flag, folders, training=training),
            (CocoItem, CocoFacts),
            [self.file],
            *(self.exhaustive, flag.anywhere, training),
            folders=folders,
        )
        self.classes = ClassList(facts.names, facts.spoken, f"{self.file}, categories")
        for remark in no_class_remarks(self.classes, "remove the category"):
            logger.warning("%s: %s", self.file, remark)
        self._num_annotations = facts.num_annotations
        self.knows_absent = facts.knows_absent

    @classmethod
    def open(cls, dataset_dir: str | Path, fields: Sequence[str], *, training: bool = False) -> OwnCoco:
        """From the path and the fields after it: ("./boats.json", "exhaustive=true")."""
        return cls(
            dataset_dir,
            OwnFlag.parse(cls.name, fields, ("exhaustive", "images", "anywhere")),
            training=training,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_annotations(self) -> int:
        return self._num_annotations

    def __getitem__(self, index: int) -> SemanticSample:
        """Large objects are drawn first, so that small ones on top of them stay visible. Where nothing is annotated,
        masks are judged only of classes that are annotated completely or known to be absent.
        """
        item = self.items[index]
        image = self.load_image(item.path, item.size, item.drawn)
        objects = self.objects(item, image)
        too_small = {class_id for class_id, _ in item.objects} - {class_id for class_id, *_ in objects}
        not_absent = set(range(len(self.classes))) - set(item.absent)
        partly = item.partly | too_small if self.exhaustive else not_absent
        is_known = self.exhaustive or item.absent
        label = np.full(image.shape[:2], NOTHING if is_known else IGNORE, dtype=np.uint16)
        for class_id, mask, _ in sorted(objects, key=lambda drawn: -int(drawn[1].sum())):
            label[mask.astype(bool)] = class_id
        masked, partly_drawn = {class_id for class_id, *_ in objects}, item.partly | too_small
        return SemanticSample(
            image=image,
            label=label,
            classes=self.classes,
            absent=item.absent,
            partly=tuple(sorted(partly)),
            source=str(item.path),
            instances=true_instances(objects, sorted({*item.absent, *masked} - partly_drawn)),
        )

    def read(self, index: int) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
        item = self.items[index]
        image = self.load_image(item.path, item.size, item.drawn)
        masks: dict[int, np.ndarray] = {}
        for class_id, mask, _ in self.objects(item, image):
            if class_id not in item.partly:
                masks[class_id] = masks[class_id] | mask if class_id in masks else mask
        return image, masks

    def absent_classes(self, index: int) -> list[int]:
        return list(self.items[index].absent)

    def source_path(self, index: int) -> Path:
        return self.items[index].path

    def objects(self, item: CocoItem, image: np.ndarray) -> list[tuple[int, np.ndarray, bool]]:
        """Class, (height, width) uint8 mask, and whether it is a crowd, of every object.

        UnusableItemError for a malformed or empty mask.

        Leftovers of tools that are too small to cover a pixel are skipped if there are other objects.
        """
        height, width = image.shape[:2]
        drawn, problems = [], []
        for (class_id, segmentation), crowd in zip(item.objects, item.crowds, strict=True):
            with self.usable(item.path, f"a mask of {self.classes.official[class_id]!r} in {self.file}: "):
                try:
                    mask = decode_own_mask(
                        segmentation, height, width, on_stray=lambda: self.note(STRAY_PART, item.path)
                    )
                    drawn.append((class_id, mask, crowd))
                except EmptyMaskError as problem:
                    if len(item.objects) == 1:
                        raise
                    problems.append(problem)
        if problems and not drawn:
            raise UnusableItemError(
                item.path, f"its masks in {self.file} cover no pixel; first: {problems[0]}"
            )
        if problems:
            self.note(STRAY_OBJECT, item.path)
        return drawn

    def _read_index(
        self, flag: OwnFlag, folders: Sequence[Path], *, training: bool
    ) -> tuple[list[CocoItem], CocoFacts]:
        """The images that can be asked about, and what is known of all of them."""
        with well_formed(self.file):
            content = read_coco(self.file)
            classes = self._read_classes(content)
            class_of = {category["id"]: index for index, category in enumerate(classes)}
            names = [image["file_name"] for image in content["images"]]
            images = find_images(flag, self.file, names, folders)
            if images.respelled:
                name, file = next(iter(images.respelled.items()))
                self.note(
                    f"file names of {self.file.name} read as others, {name!r} as {file!r}", images.folder
                )
            items = self._build_index(content, images, class_of)
        self.check_index(len(items), self.file)
        if self.exhaustive and (num_empty := sum(not item.objects for item in items)):
            self.note(
                f"{num_empty} of {len(items)} images have no annotation; with exhaustive=true every class is absent "
                "from them: remove those that nobody has annotated yet",
                next(item.path for item in items if not item.objects),
            )
        items = [item for item in items if item.is_askable] if training else items
        if not items:
            raise UserError(
                f"{self.name}: no image of {self.file} has a class that is known to be present or absent; annotate "
                "some, or say exhaustive=true"
            )
        official = tuple(category["name"] for category in classes)
        return items, CocoFacts(
            names=official,
            spoken=tuple(spoken_names(official)),
            num_annotations=sum(len(item.objects) for item in items),
            knows_absent=any(item.absent for item in items),
        )

    def _read_classes(self, content: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The categories that are classes, without headings of others. UserError for unusable names."""
        classes, headings = split_groups(content)
        no_class = [name for name in headings if means_no_class(name)]
        groups = [name for name in headings if name not in no_class]
        for reason, found in (("only groups others", groups), ("is a word of tools for no class", no_class)):
            if found:
                self.note(f"no class, as it {reason} and is never annotated: {', '.join(found)}", self.file)
        names = [category["name"] for category in classes]
        ClassList(names, spoken_names(names), f"{self.file}, categories")
        return classes

    def _build_index(
        self, content: Mapping[str, Any], images: ImageFiles, class_of: Mapping[Any, int]
    ) -> list[CocoItem]:
        """A CocoItem for each image file that exists and has a segmentation for each of its annotations."""
        objects: dict[Any, list[tuple[int, Any, bool]]] = defaultdict(list)
        ignored: dict[Any, set[int]] = defaultdict(set)  # image id -> classes of which something is ignored
        for position, annotation in enumerate(content["annotations"]):
            segmentation = annotation.get("segmentation")
            if annotation.get("ignore"):  # crowds and difficult objects, as some tools mark them
                ignored[annotation["image_id"]].add(class_of[annotation["category_id"]])
                self.note("annotations marked 'ignore'; their class is not asked in that image", self.file)
                continue
            is_crowd = annotation.get("iscrowd") in (1, True, "1")
            objects[annotation["image_id"]].append(
                (class_of[annotation["category_id"]], segmentation, is_crowd)
            )
            if form := form_of(segmentation):
                self.note(f"{form}; read as meant", f"annotations[{position}]")
        entries: dict[Path, list[Mapping[str, Any]]] = defaultdict(list)  # a file may be listed several times
        for image in content["images"]:
            path = images.path(image["file_name"])
            if image["file_name"] not in images:
                self.drop(path, f"{images.why_not(image['file_name'])}, but in {self.file}", MISSING)
            elif not all(segmentation for _, segmentation, _ in objects[image["id"]]):
                self.drop(
                    path,
                    f"an annotation of it in {self.file} has no segmentation; draw a mask, a box is none",
                )
            else:
                entries[path].append(image)
        return [self._item(path, listed, objects, ignored, class_of) for path, listed in entries.items()]

    def _item(
        self,
        path: Path,
        entries: Sequence[Mapping[str, Any]],
        objects: Mapping[Any, Sequence[tuple[int, Any, bool]]],
        ignored: Mapping[Any, set[int]],
        class_of: Mapping[Any, int],
    ) -> CocoItem:
        """One image file, with the information of all its entries in the annotation file."""
        if len(entries) > 1:
            self.note("listed several times in the annotation file; taken together", path)
        drawn = tuple(found for image in entries for found in objects[image["id"]])
        partly, absent = set[int](), set(class_of.values()) if self.exhaustive else set[int]()
        for image in entries:
            partly |= classes_in(image, "not_exhaustive_category_ids", class_of) | ignored[image["id"]]
            absent |= classes_in(image, "neg_category_ids", class_of)
        absent -= partly | {class_id for class_id, *_ in drawn}
        return CocoItem(
            path=path,
            size=annotated_size(entries[0]),
            objects=tuple((class_id, segmentation) for class_id, segmentation, _ in drawn),
            crowds=tuple(crowd for *_, crowd in drawn),
            absent=tuple(sorted(absent)),
            partly=frozenset(partly),
        )


def true_instances(objects: Sequence[tuple[int, np.ndarray, bool]], judged: Sequence[int]) -> TrueInstances:
    """The objects of classes that are judged, for average precision.

    Args:
        objects: class, (height, width) mask of 0 and 1, and whether it is a crowd.
        judged: classes of which all objects are drawn, or which are known to be absent.
    """
    kept = [(class_id, mask, crowd) for class_id, mask, crowd in objects if class_id in judged]
    return TrueInstances(
        classes=tuple(class_id for class_id, _, _ in kept),
        masks=tuple(
            coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for _, mask, _ in kept
        ),
        crowds=tuple(crowd for _, _, crowd in kept),
        judged=tuple(judged),
    )
