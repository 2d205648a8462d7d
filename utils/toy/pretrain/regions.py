"""What a tiny segmenter learns: the mask of a region from a point, a box or a coarse mask, like the published ones.

Its image encoder is also supervised with the class of each pixel and the colour of its thing: it replaces an encoder
trained on a billion masks, and the toy world has only twenty classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoders.base import MaskPrompts
from model.inputs import Levels, Size
from utils.toy.pretrain.common import COLOURS, NUM_LABELS, PRETRAIN_SEED, Student, colours_of_things
from utils.toy.scene import CLASSES, Scene, draw_scene

SIDE, MASK_SIDE = 256, 64  # of images and masks
NUM_COLOURS = len(COLOURS) + 1  # the last one for everything without a named colour
PROMPTS_PER_IMAGE = 6
POINT, BOX, COARSE_MASK = range(3)  # kinds of prompts; half of the points have a coarse mask beside them
KIND_SHARES = (0.35, 0.35, 0.3)
COARSE_SIDE = 10  # of a mask prompt before it is enlarged: the toy CLIP's grid, as of spatial prompts
NUM_WEIGHED_SCENES = 200


@dataclass(frozen=True, kw_only=True)
class Framed:
    """A scene as the image encoder sees it."""

    image: np.ndarray  # (3, SIDE, SIDE) uint8
    size: Size  # (height, width) without padding
    labels: np.ndarray  # (MASK_SIDE, MASK_SIDE) uint8
    things: np.ndarray  # the same shape and type, 0 where there is none


Frame = Callable[[Scene], Framed]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts of n regions: a point inside it, its box, or a coarse mask."""

    owners: Tensor  # (n,) index of the image
    boxes: Tensor  # (n, 4) pixels
    points: Tensor  # (n, 1, 2) pixels
    kinds: Tensor  # (n,)
    coarse: Tensor  # (n, 1, MASK_SIDE, MASK_SIDE) logits
    gates: Tensor  # (n,): 0 where the coarse mask is no prompt

    @property
    def dense(self) -> MaskPrompts:
        """The coarse masks."""
        return MaskPrompts(logits=self.coarse, gates=self.gates)

    def sparse(self, by_point: Tensor, by_box: Tensor, nothing: Tensor) -> Tensor:
        """The tokens (n, 3, dim) of each prompt's kind, from those of its point (n, 2, dim) and its box.

        Args:
            by_box: (n, 2 or 3, dim).
            nothing: (dim,), the token that says that there is no point.
        """
        tokens = [F.pad(part, (0, 0, 0, 3 - part.shape[1])) for part in (by_point, by_box)]
        of_kind = self.kinds.view(-1, 1, 1)
        alone = F.pad(nothing.view(1, 1, -1), (0, 0, 0, 2)).to(tokens[0].dtype)
        return torch.where(of_kind == POINT, tokens[0], torch.where(of_kind == BOX, tokens[1], alone))


@cache
def class_weights(frame: Frame) -> Tensor:
    """(NUM_LABELS,) float32, inverse square root of each label's frequency, with a mean of 1 over pixels.

    Without weights, sky and sea count a hundred times as much as a ball or a person.
    """
    counts = np.zeros(NUM_LABELS, dtype=np.int64)
    for index in range(NUM_WEIGHED_SCENES):
        counts += np.bincount(frame(draw_scene(PRETRAIN_SEED, index)).labels.ravel(), minlength=NUM_LABELS)
    shares = counts / counts.sum()
    weights = 1 / np.sqrt(np.maximum(shares, 1e-4))
    return torch.from_numpy(weights / (weights * shares).sum()).float()


class RegionStudent(Student):
    """A segmenter with heads that predict the class and the colour of each pixel of a mask."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame
        self.register_buffer("class_weights", class_weights(frame), persistent=False)

    def features(self, prepared: dict[str, Any]) -> Levels:
        """The image encoder's levels, with gradients, which `encode` has not: the assistant's encoder is frozen."""
        raise NotImplementedError

    def per_pixel(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """Logits of classes and colours, (B * MASK_SIDE * MASK_SIDE, labels) in float32."""
        raise NotImplementedError

    def masks(self, levels: Levels, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits (n, MASK_SIDE, MASK_SIDE) and predicted IoU (n, 1), in float32."""
        raise NotImplementedError

    def lesson(self, levels: Levels, prepared: dict[str, Any]) -> dict[str, Tensor]:
        """Further losses by name, which are added with a weight of 2; none here."""
        return {}

    def prepare(self, scenes: list[Scene]) -> dict[str, Any]:
        """Images with their sizes, a label and a colour for each pixel of a mask, and prompts with their regions."""
        rng = np.random.default_rng(int(scenes[0].image.sum(dtype=np.int64)))
        framed = [self.frame(scene) for scene in scenes]
        colours = [colours_of_things(scene)[one.things] for scene, one in zip(scenes, framed, strict=True)]
        prompts, regions = draw_prompts(framed, rng)
        return {
            "images": torch.from_numpy(np.stack([one.image for one in framed])),
            "sizes": [one.size for one in framed],
            "labels": torch.from_numpy(np.stack([one.labels for one in framed])).long().view(-1),
            "colours": torch.from_numpy(np.stack(colours)).long().view(-1),
            "prompts": prompts,
            "regions": regions,
        }

    def losses(self, prepared: dict[str, Any]) -> dict[str, Tensor]:
        regions = prepared["regions"]
        with torch.autocast(self.device_type, torch.bfloat16):
            levels = self.features(prepared)
            classes, colours = self.per_pixel(levels)
            logits, quality = self.masks(levels, prepared["prompts"])
            further = self.lesson(levels, prepared)
        class_loss = F.cross_entropy(classes, prepared["labels"], weight=self.class_weights)
        colour_loss = F.cross_entropy(colours, prepared["colours"])
        bce = F.binary_cross_entropy_with_logits(logits, regions)
        probabilities = logits.sigmoid().flatten(1)
        overlap = (probabilities * regions.flatten(1)).sum(1)
        total = probabilities.sum(1) + regions.flatten(1).sum(1)
        dice = (1 - (2 * overlap + 1) / (total + 1)).mean()
        with torch.no_grad():
            predicted = logits > 0
            both = (predicted & (regions > 0)).flatten(1).sum(1)
            iou = both / (predicted | (regions > 0)).flatten(1).sum(1).clamp(min=1)
        quality_loss = F.mse_loss(quality.squeeze(1), iou)
        loss = class_loss + 0.5 * colour_loss + 2 * bce + dice + 0.1 * quality_loss
        return {
            "loss": loss + 2 * sum(further.values()),
            **further,
            "class": class_loss,
            "colour": colour_loss,
            "bce": bce,
            "dice": dice,
            "iou": iou.mean(),
        }


def draw_prompts(framed: list[Framed], rng: np.random.Generator) -> tuple[Prompts, Tensor]:
    """Prompts of a few regions of each image, things or stuff, and the regions (n, MASK_SIDE, MASK_SIDE)."""
    owners, boxes, points, kinds, targets = [], [], [], [], []
    stride = SIDE // MASK_SIDE
    for number, one in enumerate(framed):
        label, thing = one.labels, one.things
        regions = [thing == k for k in np.unique(thing) if k]
        regions += [(label == k) & (thing == 0) for k in np.unique(label[thing == 0]) if k != len(CLASSES)]
        for choice in rng.permutation(len(regions))[:PROMPTS_PER_IMAGE]:
            rows, columns = np.nonzero(regions[choice])
            pick = int(rng.integers(len(rows)))
            owners.append(number)
            points.append([[(columns[pick] + 0.5) * stride, (rows[pick] + 0.5) * stride]])
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * stride
            boxes.append(box + rng.uniform(-4, 4, 4))
            kinds.append(int(rng.choice(len(KIND_SHARES), p=KIND_SHARES)))
            targets.append(regions[choice])
    regions_of_all = torch.from_numpy(np.stack(targets)).float()
    has_mask = [kind == COARSE_MASK or (kind == POINT and rng.random() < 0.5) for kind in kinds]
    prompts = Prompts(
        owners=torch.tensor(owners),
        boxes=torch.tensor(np.stack(boxes), dtype=torch.float32),
        points=torch.tensor(points, dtype=torch.float32),
        kinds=torch.tensor(kinds),
        coarse=coarse_masks(regions_of_all, rng),
        gates=torch.tensor(has_mask).float(),
    )
    return prompts, regions_of_all


def coarse_masks(regions: Tensor, rng: np.random.Generator) -> Tensor:
    """Logits (n, 1, MASK_SIDE, MASK_SIDE) of regions (n, MASK_SIDE, MASK_SIDE), by a model that is unsure."""
    shares = F.adaptive_avg_pool2d(regions.unsqueeze(1), COARSE_SIDE)
    sure = torch.from_numpy(rng.uniform(0.6, 1.0, (len(shares), 1, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0.0, 0.1, shares.shape)).float()
    logits = (sure * shares + noise).clamp(0.02, 0.98).logit()
    return F.interpolate(logits, (MASK_SIDE, MASK_SIDE), mode="bilinear")
