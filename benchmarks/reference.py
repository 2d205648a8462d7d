"""A plain loader to compare with: the recipe of the released code, step by step.

Each sample holds a float image - resized, normalised, padded - and dense float masks, as in LISA's and LaSagnA's
published training code. Text is built and tokenized by our own functions, so that only the handling of pixels is
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from model.decoders.transform import longest_side_size
from model.inputs import ModelInputs
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.encoded import IGNORE_INDEX
from model.text.sequence import complex_conversation, referring_conversation
from utils.data.base import sample_up_to
from utils.data.datasets.refer import ReferringDataset
from utils.data.semantic import SemanticDataset
from utils.data.types import Recipe

PIXEL_MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
PIXEL_STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


class PlainLoader:
    """Batches of one data set, made the plain way; file lists and annotations come from our index."""

    def __init__(
        self, dataset: SemanticDataset | ReferringDataset, processor: LasagnaProcessor, recipe: Recipe
    ) -> None:
        self.dataset = dataset
        self.processor = processor
        self.recipe = recipe

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The batch of the samples `indices`: tensors by name."""
        samples = [self.sample(self.rng(index)) for index in indices]
        encoded = [self.processor.encode(c) for sample in samples for c in sample["conversations"]]
        return {
            "images": torch.stack([sample["image"] for sample in samples]),
            "clip_images": torch.stack([sample["clip_image"] for sample in samples]),
            "masks": [sample["masks"] for sample in samples],
            "input_ids": pad_sequence([torch.tensor(row.input_ids) for row in encoded], batch_first=True),
            "labels": pad_sequence(
                [torch.tensor(row.labels) for row in encoded], batch_first=True, padding_value=IGNORE_INDEX
            ),
        }

    def rng(self, index: int) -> np.random.Generator:
        """The generator as our mixture passes it to its only data set, so that both draw the same samples."""
        rng = np.random.default_rng((0, index))
        rng.choice(1, p=[1.0])
        return rng

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        index = int(rng.integers(len(self.dataset)))
        is_semantic = isinstance(self.dataset, SemanticDataset)
        path = self.dataset.pairs[index][0] if is_semantic else self.dataset.items[index].path
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        draw = self.semantic if is_semantic else self.referring
        conversations, masks = draw(index, image, rng)
        return {
            "image": self.sam_image(image),
            "clip_image": self.processor.images.clip(image, return_tensors="pt")["pixel_values"][0],
            "conversations": conversations,
            "masks": masks,
        }

    def sam_image(self, image: np.ndarray) -> Tensor:
        """(3, size, size) float32: resized by Pillow, normalised, padded."""
        size = self.processor.sam_image_size
        height, width = longest_side_size(*image.shape[:2], size)
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        pixels = (torch.from_numpy(resized).permute(2, 0, 1).contiguous() - PIXEL_MEAN) / PIXEL_STD
        return F.pad(pixels, (0, size - width, 0, size - height))

    def semantic(
        self, index: int, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[Conversation], Tensor]:
        """One complex query, a mask for each class present; label value 0 is unlabelled, as in ADE20K."""
        classes = self.dataset.classes
        label = np.array(Image.open(self.dataset.pairs[index][1]))
        present = [int(value) - 1 for value in np.unique(label) if value > 0]
        absent = [class_id for class_id in range(len(classes)) if class_id not in present]
        conversation, answered = complex_conversation(
            [classes[class_id] for class_id in present],
            [classes[class_id] for class_id in absent],
            rng,
            self.recipe.format,
            self.recipe.num_all_classes,
        )
        values = torch.from_numpy(label).long()
        masks = torch.stack([values == classes.index(name) + 1 for name in answered]).float()
        return [conversation], masks

    def referring(
        self, index: int, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[Conversation], Tensor]:
        """Up to `num_expressions` expressions, each with the union of its annotations' polygons."""
        height, width = image.shape[:2]
        item = self.dataset.items[index]
        chosen = sample_up_to(rng, item.expressions, self.recipe.num_expressions)
        conversations = [referring_conversation(e.text, True, rng, self.recipe.format) for e in chosen]
        masks = []
        for expression in chosen:
            mask = np.zeros((height, width), dtype=np.uint8)
            for ann_id in expression.ann_ids:
                codes = coco_mask.frPyObjects(item.segmentations[ann_id], height, width)
                mask |= np.sum(coco_mask.decode(codes), axis=2).astype(np.uint8)
            masks.append(mask)
        return conversations, torch.from_numpy(np.stack(masks)).float()


def num_bytes(value: object) -> int:
    """Bytes of all tensors in a batch, which a worker sends to the training process."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(num_bytes(entry) for entry in value.values())
    if isinstance(value, ModelInputs):
        return num_bytes(value.fields())
    if isinstance(value, list | tuple):
        return sum(num_bytes(entry) for entry in value)
    return 0


def path_of(root: Path, *parts: str) -> Path:
    """A file below `root`; its folder is created."""
    path = root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
