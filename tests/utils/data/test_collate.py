from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from model.processor import LasagnaProcessor
from model.sequence import SequenceFormat
from model.tokens import add_special_tokens, load_tokenizer
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    blocks,
    box_polygon,
    dialogue,
    reference,
    write_ade20k,
    write_llava,
    write_refer,
)
from utils.data.ade20k import Ade20k
from utils.data.collate import Collate, LengthLimit, build_loader
from utils.data.llava_instruct import LlavaInstruct
from utils.data.mixture import Mixture
from utils.data.refer import RefCoco
from utils.data.types import Batch, Recipe


@pytest.fixture(scope="module")
def processor(llama_tokenizer_folder: Path) -> LasagnaProcessor:
    format = SequenceFormat.named("paper")
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, format)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LasagnaProcessor(
        tokenizer=tokenizer, clip=clip, sam_image_size=64, num_image_tokens=4, format=format
    )


@pytest.fixture
def stream(tmp_path: Path, recipe: Recipe) -> Mixture:
    write_ade20k(tmp_path, [blocks([1, 2]), blocks([3, 4, 5], 30, 20)])
    refs = [reference(0, 1, 1, "train", "a", "b", "c")]
    write_refer(tmp_path, "refcoco", refs, {1: [box_polygon(3, 3, 9, 9)]}, [1])
    write_llava(tmp_path, [dialogue("1.jpg", "What?", "A ball.")])
    few = Recipe(format=recipe.format, num_all_classes=6)
    sources = [reader(tmp_path, "train") for reader in (Ade20k, RefCoco, LlavaInstruct)]
    return Mixture(sources, [1, 1, 1], recipe=few, seed=0)


def test_a_batch_holds_every_image_once_and_every_conversation(stream, processor):
    samples = [stream[index] for index in range(12)]
    assert {sample.dataset for sample in samples} == {"ade20k", "refcoco", "llava_instruct_150k"}
    batch = Collate(processor)(samples)
    rows = [index for index, sample in enumerate(samples) for _ in sample.conversations]
    assert batch.inputs["clip_images"].shape == (12, 3, 28, 28)
    assert batch.inputs["sam_images"].dtype == torch.uint8
    assert batch.inputs["image_of_row"].tolist() == rows
    assert len(batch.inputs["input_ids"]) == len(rows)
    assert batch.inputs["original_sizes"] == [sample.image.shape[:2] for sample in samples]
    for sample, masks in zip(samples, batch.inputs["gt_masks"], strict=True):
        assert masks.dtype == torch.uint8
        assert np.array_equal(masks, sample.masks)
    assert batch.sources == tuple(sample.source for sample in samples)


def test_mask_k_belongs_to_seg_k_of_the_token_ids(stream, processor):
    batch = Collate(processor)([stream[index] for index in range(12)]).inputs
    ids = batch["input_ids"][batch["seg_rows"], batch["seg_columns"]]
    assert (ids == processor.token_ids.seg).all()
    assert batch["seg_images"] == [
        image for image, masks in enumerate(batch["gt_masks"]) for _ in range(len(masks))
    ]
    places = list(zip(batch["seg_rows"].tolist(), batch["seg_columns"].tolist(), strict=True))
    assert places == sorted(places)


def flat(batch: Batch) -> list:
    tensors = {name: value for name, value in batch.inputs.items() if name != "gt_masks"}
    masks = [mask.tolist() for mask in batch.inputs["gt_masks"]]
    return [*(v.tolist() if hasattr(v, "tolist") else v for v in tensors.values()), masks, batch.sources]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_are_the_same_with_any_number_of_workers(stream, processor, num_workers):
    settings = {"batch_size": 2, "num_batches": 4, "start": 1, "rank": 1, "world_size": 2}
    alone = [flat(batch) for batch in build_loader(stream, processor, **settings)]
    several = build_loader(stream, processor, num_workers=num_workers, **settings)
    assert [flat(batch) for batch in several] == alone
    first = [stream[index].source for index in (6, 7)]
    assert list(alone[0][-1]) == first


def test_what_was_skipped_is_counted_in_the_batch(stream, processor, tmp_path):
    (tmp_path / "ade20k/annotations/training/ADE_training_00000000.png").write_bytes(b"")
    batch = Collate(processor)([stream[index] for index in range(12)])
    assert batch.skipped
    assert all("ADE_training_00000000.png" in reason for reason in batch.skipped)


def test_samples_beyond_the_length_limit_are_replaced(stream, processor):
    longest = max(
        len(processor.encode(conversation).input_ids) - processor.num_image_tokens
        for conversation in stream[0].conversations
    )
    assert LengthLimit(processor, longest)(stream[0]) is None
    reason = f"{longest} text tokens, more than --model_max_length {longest - 1}"
    assert LengthLimit(processor, longest - 1)(stream[0]) == reason


def test_moving_a_batch_moves_every_tensor_in_it(stream, processor):
    batch = Collate(processor)([stream[0], stream[1]]).to("meta")
    assert batch.inputs["input_ids"].device.type == "meta"
    assert all(mask.device.type == "meta" for mask in batch.inputs["gt_masks"])
    assert batch.inputs["original_sizes"][0] in ((HEIGHT, WIDTH), (30, 20))


def test_fast_resize_changes_sams_picture_by_two_grey_levels_at_most(stream, processor):
    samples = [stream[0], stream[1]]
    exact = Collate(processor)(samples).inputs["sam_images"].int()
    fast = Collate(processor, fast_resize=True)(samples).inputs["sam_images"].int()
    assert (exact - fast).abs().max() <= 2
