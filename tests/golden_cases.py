"""The reference numbers of the released code: the cases, the batches they describe, and the tolerance."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from model.checkpoints.load import load_model
from model.inputs import RowInputs
from tests.golden import COMPLETE, PART, folders

TOLERANCE = 1e-4
IMAGE_PLACEHOLDER = -200
ABSENT = f"no reference numbers of this kind in {COMPLETE}; set LASAGNA_GOLDEN"


def cases(pattern):
    """The files of one kind in the complete set, as pytest parameters; a skipped parameter if there are none."""
    found = sorted(COMPLETE.glob(pattern))
    absent = pytest.param(None, marks=pytest.mark.skip(reason=ABSENT), id="absent")
    return [pytest.param(path, id=path.stem) for path in found] or [absent]


def cases_of_part(pattern):
    """The files of one kind in tests/golden and, if present, in the complete set, as pytest parameters."""
    return [
        pytest.param(path, id=f"{path.stem}-{'part' if folder == PART else 'complete'}")
        for folder in folders()
        for path in sorted(folder.glob(pattern))
    ]


def close(actual, expected, name):
    actual, expected = torch.as_tensor(actual).float(), torch.as_tensor(expected).float()
    assert actual.shape == expected.shape, name
    if expected.numel():
        worst = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert worst < TOLERANCE, f"{name} is off by {worst:.1e} of its largest value"


def load(name, **kwargs):
    tower = str(COMPLETE / "checkpoints" / "clip-vit-tiny-patch14")
    return load_model(COMPLETE / "checkpoints" / name, vision_tower=tower, dtype=torch.float32, **kwargs)[0]


class TrainCase:
    """One train_*.npz with its JSON file, and the batch that it describes."""

    def __init__(self, path, processor):
        self.numbers = np.load(path)
        self.facts = json.loads(path.with_suffix(".json").read_text())
        self.offset = self.numbers["offset"].tolist()
        self.images = [self.numbers[f"image{i}"] for i in range(len(self.offset) - 1)]
        self.owners = [
            image
            for image, (start, end) in enumerate(zip(self.offset, self.offset[1:], strict=False))
            for _ in range(start, end)
        ]
        self.gt_masks = tuple(
            torch.from_numpy(self.of_image("gt{}", i, np.uint8)) for i in range(len(self.images))
        )
        ids, labels, mask = expand(
            self.numbers["input_ids"], self.numbers["labels"], self.numbers["attention_masks"], processor
        )
        batch = batch_of(ids, mask, self.images, self.owners, processor)
        self.batch = replace(batch, labels=labels, gt_masks=self.gt_masks)

    def of_image(self, name, index, dtype=np.float32):
        """Masks of an image; an image without masks may have no entry."""
        key = name.format(index)
        if key in self.numbers:
            return self.numbers[key]
        return np.zeros((0, *self.images[index].shape[:2]), dtype=dtype)


def expand(ids, labels, attention, processor):
    """Replaces the placeholder of each row by one token per image feature; labels and masks likewise."""
    rows, row_labels, masks = [], [], []
    count = processor.images.num_image_tokens
    for row, label, mask in zip(ids, labels, attention, strict=True):
        at = int(np.flatnonzero(row == IMAGE_PLACEHOLDER)[0])
        rows.append([*row[:at], *[processor.token_ids.image] * count, *row[at + 1 :]])
        row_labels.append([*label[:at], *[-100] * count, *label[at + 1 :]])
        masks.append([*mask[:at], *[1] * count, *mask[at + 1 :]])
    return torch.tensor(rows), torch.tensor(row_labels), torch.tensor(np.array(masks, dtype=np.int64))


def batch_of(ids, mask, images, owners, processor):
    rows = RowInputs(input_ids=ids, attention_mask=mask)
    return processor.join(rows, processor.image_inputs(images), owners)


@cache
def trained_once(path, model):
    """A case, the model, the outputs of one pass over it and the gradients of its loss."""
    case, model = TrainCase(path, model.processor), copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and "image_encoder" not in name)
    output = model(**case.batch.fields(), return_predictions=True)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return case, model, output, gradients
