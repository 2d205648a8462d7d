"""The masks of an answer in the forms that other programs take: COCO, supervision, Pillow, a Hugging Face pipeline.

`Segmentation` and `ChatAnswer` (model/outputs.py) inherit these methods. Pixels are copied by none of them but where
the form asks for it; boxes are in pixels of the original image, the lower right corner outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from model.choices import check_min_area
from model.errors import UserError

if TYPE_CHECKING:
    import supervision

Box = tuple[int, int, int, int]
InstanceSource = Literal["components", "model"]  # connected parts of masks, or objects of the model's own
RunLengths = dict[str, Any]  # COCO's compressed run-length code: {"size": [height, width], "counts": text}
UNNAMED = "object"  # in formats in which every mask needs a name
MIN_POINTS = 3
MAX_INSTANCE_PIXELS = 4_000_000_000  # of all instances of an answer, a byte each


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundMask:
    """One mask of an answer, or one instance: a single object."""

    label: str  # class name; of an answer in words what it calls the mask, "" where it says nothing
    pixels: np.ndarray  # (height, width) bool
    probability: float | None  # that the class is in the image; None where the model does not give one
    # Mean probability of the pixels inside, times `probability` where there is one; 0 without pixels. Of an instance
    # that a concept head found, the head's own score.
    score: float
    index: int = 0  # of the mask of the answer that it is, or is a part of

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.pixels))

    @cached_property
    def box(self) -> Box:
        """(x, y, width, height), COCO's box; all 0 without pixels."""
        rows, columns = (np.flatnonzero(self.pixels.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return 0, 0, 0, 0
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top

    @cached_property
    def run_lengths(self) -> RunLengths:
        """COCO's compressed run-length code, exact."""
        code = coco_mask.encode(np.asfortranarray(self.pixels, dtype=np.uint8))
        return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}

    @cached_property
    def polygons(self) -> list[list[float]]:
        """Outer outlines [x0, y0, x1, y1, ...] along pixel edges. Holes are filled; `run_lengths` has them."""
        return outer_outlines(self.pixels)

    def image(self) -> Image.Image:
        """An image of mode "L": 255 inside, 0 outside."""
        return Image.fromarray(self.pixels.astype(np.uint8) * 255)


class Exportable:
    """Adds the forms of other programs to a class with `masks` (num_masks, height, width), logits."""

    masks: Tensor

    def labels_and_probabilities(self) -> list[tuple[str, float | None]]:
        """For each mask its label and the probability that its class is in the image, None where unknown."""
        raise NotImplementedError

    def own_instances(self) -> Sequence[FoundMask] | None:
        """The objects that the model itself told apart; None where it gives one mask for each class or [SEG]."""
        return None

    @property
    def instance_source(self) -> InstanceSource:
        """Where the instances of this answer come from."""
        return "components" if self.own_instances() is None else "model"

    def found(self, *, instances: bool = False, min_area: int = 0) -> list[FoundMask]:
        """The masks with label, probability, score, box, area, run lengths and polygons, in the order of `masks`.

        Args:
            instances: the single objects instead of whole masks, see `instances_of`.
            min_area: smaller instances, in pixels, are left out; only with `instances`.

        Raises:
            UserError: `min_area` is below 0, or given without `instances`.
        """
        check_min_area(min_area, instances=instances)
        if instances:
            return instances_of(self, min_area)
        labels = self.labels_and_probabilities()
        return [
            replace(found_mask(label, probability, logits, (logits > 0).cpu().numpy()), index=index)
            for index, ((label, probability), logits) in enumerate(zip(labels, self.masks, strict=True))
        ]

    def to_coco(
        self,
        *,
        image_id: int = 1,
        file_name: str = "",
        category_ids: Mapping[str, int] | None = None,
        instances: bool = False,
        min_area: int = 0,
    ) -> dict[str, Any]:
        """A COCO instances file with one image, as a dictionary: `json.dump` writes it, label tools import it.

        Its `annotations` have a score, so they are a list of COCO results too (`COCO.loadRes`). Segmentations are
        compressed run-length codes.

        Args:
            image_id, file_name: of the image.
            category_ids: number of each label; by default they are numbered from 1 in the order of the classes asked
                for, present or not.
            instances, min_area: as in `found`.

        Raises:
            UserError: `category_ids` misses a label.
        """
        found = self.found(instances=instances, min_area=min_area)
        ids = category_ids or {label: number for number, label in enumerate(self._categories(), start=1)}
        if unknown := sorted({mask.label or UNNAMED for mask in found} - ids.keys()):
            raise UserError(f"category_ids has no number for {', '.join(unknown)}; add it")
        height, width = self.masks.shape[-2:]
        return {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "categories": [{"id": number, "name": label} for label, number in ids.items()],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": ids[mask.label or UNNAMED],
                    "segmentation": mask.run_lengths,
                    "bbox": list(mask.box),
                    "area": mask.area,
                    "iscrowd": 0,
                    "score": mask.score,
                }
                for number, mask in enumerate(found, start=1)
            ],
        }

    def to_supervision(self, *, instances: bool = False, min_area: int = 0) -> supervision.Detections:
        """`supervision.Detections`: boxes, masks, scores, class numbers (as in `to_coco`, from 0), `class_name`.

        Raises:
            UserError: the package is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UserError(
                "to_supervision needs the package supervision; install it: pip install supervision"
            ) from None
        found = self.found(instances=instances, min_area=min_area)
        if not found:
            return supervision.Detections.empty()
        numbers = {label: number for number, label in enumerate(self._categories())}
        corners = [
            (left, top, left + width, top + height) for left, top, width, height in (m.box for m in found)
        ]
        names = [mask.label or UNNAMED for mask in found]
        return supervision.Detections(
            xyxy=np.array(corners, dtype=np.float32),
            mask=np.stack([mask.pixels for mask in found]),
            confidence=np.array([mask.score for mask in found], dtype=np.float32),
            class_id=np.array([numbers[name] for name in names]),
            data={"class_name": np.array(names)},
        )

    def to_pil(self, *, instances: bool = False, min_area: int = 0) -> list[Image.Image]:
        """An image of mode "L" for each mask, 255 inside and 0 outside."""
        return [mask.image() for mask in self.found(instances=instances, min_area=min_area)]

    def to_pipeline(self, *, instances: bool = False, min_area: int = 0) -> list[dict[str, Any]]:
        """As transformers' image-segmentation pipeline: {"score", "label", "mask"}, the mask as in `to_pil`."""
        return [
            {"score": mask.score, "label": mask.label or UNNAMED, "mask": mask.image()}
            for mask in self.found(instances=instances, min_area=min_area)
        ]

    def _categories(self) -> Sequence[str]:
        """The labels that can occur, each once, in their order."""
        return list(dict.fromkeys(label or UNNAMED for label, _ in self.labels_and_probabilities()))


def instances_of(answer: Exportable, min_area: int = 0) -> list[FoundMask]:
    """The single objects of an answer, of at least `min_area` pixels, in the order of its labels.

    They are those that the model told apart (`own_instances`), or else the connected parts of each mask, the largest
    first: pixels that touch at a corner are connected, and two objects that touch are one part. All that prints,
    writes or converts instances asks here.

    Raises:
        UserError: there are so many parts that their masks would take more than `MAX_INSTANCE_PIXELS` bytes.
    """
    own = answer.own_instances()
    if own is not None:
        return [one for one in own if one.area >= max(min_area, 1)]
    labels = answer.labels_and_probabilities()
    found: list[FoundMask] = []
    for index, ((label, probability), logits) in enumerate(zip(labels, answer.masks, strict=True)):
        most = MAX_INSTANCE_PIXELS // logits.numel() - len(found)
        for part in components((logits > 0).cpu().numpy(), min_area, most):
            found.append(replace(found_mask(label, probability, logits, part), index=index))
    return found


def found_mask(label: str, probability: float | None, logits: Tensor, pixels: np.ndarray) -> FoundMask:
    """Some pixels (height, width) bool of a mask with the score that its logits (height, width) give them."""
    inside = logits[torch.from_numpy(pixels).to(logits.device)]
    sure = float(inside.float().sigmoid().mean()) if len(inside) else 0.0
    score = sure if probability is None else sure * probability
    return FoundMask(label=label, pixels=pixels, probability=probability, score=score)


def components(mask: np.ndarray, min_area: int = 0, most: int | None = None) -> list[np.ndarray]:
    """The connected parts of a (height, width) mask with at least `min_area` pixels, (height, width) bool each.

    Pixels that touch at a side or a corner are connected. The largest comes first, of equals the upper one. Raises a
    UserError where there are more than `most` of them.
    """
    number, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = sorted(
        range(1, number),
        key=lambda part: (-stats[part, cv2.CC_STAT_AREA], stats[part, cv2.CC_STAT_TOP]),
    )
    parts = [part for part in parts if stats[part, cv2.CC_STAT_AREA] >= min_area]
    if most is not None and len(parts) > most:
        raise UserError(
            f"{len(parts)} connected parts in an image of {mask.shape[0]} x {mask.shape[1]} pixels are too many; "
            f"leave out the small ones with a min_area above {min_area}"
        )
    return [labels == part for part in parts]


def outer_outlines(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a (height, width) mask without its holes, along the edges of pixels: [x0, y0, x1, y1, ...].

    pycocotools rasterizes them to the mask with its holes filled.
    """
    # OpenCV's outlines go through the centres of border pixels. Those of the mask in double size, halved and rounded,
    # lie on the edges: of pixel x the columns 2x and 2x + 1 become its left edge x and its right edge x + 1.
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = [without_straight((contour.reshape(-1, 2) + 1) // 2) for contour in contours]
    return [outline.ravel().astype(float).tolist() for outline in outlines if len(outline) >= MIN_POINTS]


def without_straight(corners: np.ndarray) -> np.ndarray:
    """(num_points, 2) of a closed outline, without repeated points and points on a straight line."""
    moved = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
    corners = corners[moved]
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return corners[turns != 0]
