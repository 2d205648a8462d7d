"""Collating tokenized conversations, images and masks into the tensors of one batch.

Three right-padded rows of up to ten tokens about two images, `-` is padding:

# column   0   1   2   3    4 5 6     7    8     9        image_of_row
# row 0   <s> img img what  ? A [SEG] </s> -     -             1
# row 1   <s> img img is    B ? yes   ,    it    </s>          0
# row 2   <s> img img C     ? A and   B    [SEG] </s>          0

Ground truth masks are grouped by image, so the positions of [SEG] are sorted by image, then row, then column:
seg_rows (2, 0), seg_columns (8, 6), seg_images (0, 1). The hidden states that predict them are one column earlier, at
(2, 7) and (0, 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.inputs import ImageInputs, ModelInputs, RowInputs
from model.losses import learned_positions
from model.prompt_states import evenly, firsts_in_rows
from model.text.encoded import IGNORE_INDEX, Encoded
from model.text.packing import PADDING, PackedRow, pack_within
from model.text.tokens import TokenIds
from model.token_grid import TokenGrid


def pad_rows(encoded: Sequence[Encoded], pad_id: int, side: str) -> RowInputs:
    """Ids, labels and attention mask (N, T) of one or more conversations, padded on the "left" or "right"."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
    length = max(len(row.input_ids) for row in encoded)
    ids = torch.full((len(encoded), length), pad_id)
    labels = torch.full((len(encoded), length), IGNORE_INDEX)
    mask = torch.zeros(len(encoded), length, dtype=torch.long)
    for index, row in enumerate(encoded):
        num_tokens = len(row.input_ids)
        columns = slice(0, num_tokens) if side == "right" else slice(length - num_tokens, None)
        ids[index, columns] = torch.tensor(row.input_ids)
        labels[index, columns] = torch.tensor(row.labels)
        mask[index, columns] = 1
    return RowInputs(
        input_ids=ids, attention_mask=mask, labels=labels, position_ids=_row_positions(encoded, ids, side)
    )


def _row_positions(encoded: Sequence[Encoded], ids: Tensor, side: str) -> Tensor | None:
    """(3, N, T) positions where they have three axes; None where counting the tokens gives them."""
    if all(row.cells is None for row in encoded):
        return None
    found = torch.zeros(3, *ids.shape, dtype=torch.long)
    for index, row in enumerate(encoded):
        positions = torch.from_numpy(row.positions)
        num_tokens = positions.shape[1]
        columns = slice(0, num_tokens) if side == "right" else slice(ids.shape[1] - num_tokens, None)
        found[:, index, columns] = positions
    return found


def pack_images(
    encoded: Sequence[Encoded], image_of_row: Sequence[int], image_id: int, max_length: int | None
) -> tuple[list[PackedRow], list[int]]:
    """The packed rows of all images, in order of the images, and the image index of each row.

    Arguments as in `packing.pack_within`.
    """
    packed = [
        (image, row)
        for image in sorted(set(image_of_row))
        for row in pack_within(
            [each for each, owner in zip(encoded, image_of_row, strict=True) if owner == image],
            image_id,
            max_length,
        )
    ]
    return [row for _, row in packed], [image for image, _ in packed]


def pad_packed(rows: Sequence[PackedRow], pad_id: int) -> RowInputs:
    """Packed rows as right-padded tensors (N, T)."""

    def padded(name: str, filler: int) -> Tensor:
        # NumPy converts lists of integers six times as fast as torch.
        columns = [torch.from_numpy(np.array(getattr(row, name), dtype=np.int64)) for row in rows]
        return pad_sequence(columns, batch_first=True, padding_value=filler)

    segments = padded("segment_ids", PADDING)
    axes = [
        pad_sequence([torch.from_numpy(row.position_ids[axis]) for row in rows], batch_first=True)
        for axis in range(len(rows[0].position_ids))
    ]
    return RowInputs(
        input_ids=padded("input_ids", pad_id),
        attention_mask=(segments != PADDING).long(),
        labels=padded("labels", IGNORE_INDEX),
        position_ids=axes[0] if len(axes) == 1 else torch.stack(axes),
        segment_ids=segments,
    )


def pad_to_multiple(rows: RowInputs, multiple: int, pad_id: int) -> RowInputs:
    """Right-padded rows (N, T) with T rounded up to a multiple, so that batches have fewer different shapes."""
    missing = -rows.input_ids.shape[1] % multiple

    def longer(values: Tensor | None, filler: int) -> Tensor | None:
        return None if values is None else F.pad(values, (0, missing), value=filler)

    return RowInputs(
        input_ids=F.pad(rows.input_ids, (0, missing), value=pad_id),
        attention_mask=F.pad(rows.attention_mask, (0, missing)),
        labels=longer(rows.labels, IGNORE_INDEX),
        position_ids=longer(rows.position_ids, 0),
        segment_ids=longer(rows.segment_ids, PADDING),
    )


def pad_images(images: Sequence[np.ndarray]) -> Tensor | None:
    """(3, height, width) uint8 each -> (B, 3, h, w), zero-padded at the right and the bottom; None for no images."""
    if not images:
        return None
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = np.zeros((len(images), 3, height, width), dtype=np.uint8)
    for index, image in enumerate(images):
        padded[index, :, : image.shape[1], : image.shape[2]] = image
    return torch.from_numpy(padded)


def join(rows: RowInputs, images: ImageInputs, image_of_row: Sequence[int], ids: TokenIds) -> ModelInputs:
    """Rows and their images as one batch, with the positions of [SEG] sorted by image, then row, then column."""

    def rows_of(image: int) -> list[int]:
        return [row for row, owner in enumerate(image_of_row) if owner == image]

    found = places_of(rows.input_ids, ids.seg, image_of_row)
    absent = [] if ids.neg is None else places_of(rows.input_ids, ids.neg, image_of_row)
    seg_images = tuple(image_of_row[row] for row, _ in found)
    absent = spread_over_images(absent, seg_images, image_of_row)
    seg_rows, seg_columns = columns_of(found)
    neg_rows, neg_columns = columns_of(absent)
    labels = rows.labels
    is_said = torch.zeros_like(rows.input_ids, dtype=torch.bool) if labels is None else labels != IGNORE_INDEX
    is_choice = torch.isin(rows.input_ids, torch.tensor([ids.seg, ids.seg if ids.neg is None else ids.neg]))
    return ModelInputs(
        **rows.fields(),
        **images.fields(),
        image_of_row=tuple(image_of_row),
        seg_rows=seg_rows,
        seg_columns=seg_columns,
        seg_images=seg_images,
        seg_firsts=firsts_in_rows(is_said, is_choice, seg_rows, seg_columns),
        neg_rows=neg_rows,
        neg_columns=neg_columns,
        neg_firsts=firsts_in_rows(is_said, is_choice, neg_rows, neg_columns),
        neg_images=tuple(image_of_row[row] for row, _ in absent),
        grid_places=tuple(
            grid_places(rows.input_ids, ids.image, rows_of(image), grid)
            for image, grid in enumerate(images.token_grids)
        ),
    )


def places_of(input_ids: Tensor, token: int, image_of_row: Sequence[int]) -> list[tuple[int, int]]:
    """Row and column of a token wherever it stands, sorted by image, then row, then column."""
    found = [(row, column) for row, column in (input_ids == token).nonzero().tolist()]
    return sorted(found, key=lambda place: (image_of_row[place[0]], *place))


def columns_of(places: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Places as rows and columns (n,) int64."""
    found = torch.tensor(list(places), dtype=torch.long).view(-1, 2)
    return found[:, 0].contiguous(), found[:, 1].contiguous()


def spread_over_images(
    places: Sequence[tuple[int, int]], seg_images: Sequence[int], image_of_row: Sequence[int]
) -> list[tuple[int, int]]:
    """Of the [NEG]s of each image as many as it has [SEG]s, at least one, evenly spread.

    A query may name 80 absent classes, and looking for one costs a detector as much as for a present one.
    """
    chosen = []
    for image in sorted({image_of_row[row] for row, _ in places}):
        of_image = [place for place in places if image_of_row[place[0]] == image]
        chosen += [of_image[k] for k in evenly(len(of_image), max(1, seg_images.count(image)))]
    return chosen


def grid_places(input_ids: Tensor, image_id: int, rows: Sequence[int], grid: TokenGrid) -> Tensor:
    """Places (grid rows * columns,) in the flattened ids (N, T) of the tokens of an image's grid, in its first row.

    In a causal model their states depend on nothing behind the image, so each of its rows has the same. None without
    a row.
    """
    if not rows:
        return torch.zeros(0, dtype=torch.long)
    row = rows[0]
    [columns] = (input_ids[row] == image_id).nonzero(as_tuple=True)
    return torch.tensor(grid.pick(columns.tolist())) + row * input_ids.shape[1]


def with_masks(inputs: ModelInputs, masks: Sequence[np.ndarray], multiple: int = 1) -> ModelInputs:
    """The batch with ground truth masks (n_i, height, width) of each image, and the positions that have a label.

    Args:
        multiple: the number of positions is rounded up to a multiple, with one that has no label.
    """
    check_masks(inputs, masks)
    assert inputs.labels is not None, "conversations have labels"
    rows, columns = learned_positions(inputs.labels)
    if missing := -len(rows) % multiple:
        unlearned = (inputs.labels[:, 1:] == IGNORE_INDEX).nonzero()[:1]  # one place, if there is any
        more = unlearned.repeat(missing, 1)
        rows, columns = torch.cat([rows, more[:, 0]]), torch.cat([columns, more[:, 1] + 1])
    return replace(
        inputs,
        gt_masks=tuple(torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks),
        learned_rows=rows,
        learned_columns=columns,
    )


def check_rows(conversations: Sequence[object], image_of_row: Sequence[int], num_images: int) -> None:
    """Raises a ValueError unless there are conversations and each has a valid image index."""
    if len(conversations) != len(image_of_row):
        raise ValueError(
            f"{len(conversations)} conversations but {len(image_of_row)} entries in image_of_row"
        )
    if not conversations:
        raise ValueError("a batch needs at least one conversation, got none")
    if not all(0 <= image < num_images for image in image_of_row):
        raise ValueError(f"image_of_row {list(image_of_row)} does not fit {num_images} images")


def check_masks(inputs: ModelInputs, masks: Sequence[np.ndarray]) -> None:
    """Raises a ValueError unless every image has as many masks as [SEG]s, each of the image's size."""
    if len(masks) != inputs.num_images:
        raise ValueError(f"{len(masks)} mask arrays for {inputs.num_images} images")
    for index, (mask, size) in enumerate(zip(masks, inputs.original_sizes, strict=True)):
        expected = (inputs.seg_images.count(index), *size)
        if mask.shape != expected:
            raise ValueError(f"masks of image {index} are {mask.shape}, its [SEG] tokens need {expected}")
