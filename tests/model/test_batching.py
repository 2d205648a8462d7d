"""The worked example of model/batching.py."""

from __future__ import annotations

from model.batching import join, pad_rows
from model.inputs import ImageInputs
from model.text.encoded import Encoded
from model.text.tokens import TokenIds
from model.token_grid import TokenGrid

BOS, IMAGE, SEG, EOS, PAD = 1, 9, 7, 2, 0
IDS = TokenIds(image=IMAGE, seg=SEG, neg=None, im_start=None, im_end=None, pad=PAD, bos=BOS, eos=EOS)


def row(*words: int) -> Encoded:
    ids = [BOS, IMAGE, IMAGE, *words, EOS]
    return Encoded(input_ids=ids, labels=ids, num_image_tokens=2)


def test_segs_are_ordered_by_image_then_row_then_column():
    rows = pad_rows([row(20, 21, 22, SEG), row(*range(30, 36)), row(40, 21, 22, 41, 42, SEG)], PAD, "right")
    sizes = ((4, 4), (4, 4))
    grids = (
        TokenGrid(size=(1, 2), region=(0, 0, 4, 4)),
        TokenGrid(size=(1, 1), region=(0, 0, 4, 4), tokens=(1,)),
    )
    images = ImageInputs(
        vlm_images={}, placeholders=(), token_grids=grids, resized_sizes=sizes, original_sizes=sizes
    )
    inputs = join(rows, images, [1, 0, 0], IDS)
    # Of image 0 in row 1, of image 1 in row 0, of ten columns each.
    assert [places.tolist() for places in inputs.grid_places] == [[11, 12], [2]]
    assert rows.attention_mask.sum(1).tolist() == [8, 10, 10]
    assert (inputs.seg_rows.tolist(), inputs.seg_columns.tolist()) == ([2, 0], [8, 6])
    assert inputs.seg_images == (0, 1)
    decided = inputs.input_ids[inputs.seg_rows, inputs.seg_columns - 1]
    assert decided.tolist() == [42, 22]
