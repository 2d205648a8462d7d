from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide
from transformers import CLIPImageProcessorPil

from model.backbones.clip_images import ClipImages, pad_to_square
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.encoded import IGNORE_INDEX
from model.text.format import SequenceFormat
from model.text.special_tokens import Special
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens

PAPER = SequenceFormat.named("paper")
SEG = Special(PAPER.seg)
SIZES = ((96, 128), (150, 100), (64, 64), (3, 50), (401, 57), (37, 3))
CLIP_SIZE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with noise: what separates one resizing from another."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-30, 31, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def processor(llama_tokenizer_folder: Path) -> LasagnaProcessor:
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, PAPER)
    clip = CLIPImageProcessorPil(**CLIP_SIZE)
    return LasagnaProcessor(
        tokenizer=tokenizer, images=ClipImages(clip=clip, num_image_tokens=4), sam_image_size=64, format=PAPER
    )


@pytest.mark.parametrize("size", SIZES)
def test_sam_image_equals_resize_longest_side(processor: LasagnaProcessor, size: tuple[int, int]):
    image = smooth_image(*size)
    expected = ResizeLongestSide(64).apply_image(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(processor.sam_image(image), expected)


@pytest.mark.parametrize("size", SIZES)
def test_fast_resize_is_within_two_grey_levels(processor: LasagnaProcessor, size: tuple[int, int]):
    image = smooth_image(*size)
    exact, fast = processor.sam_image(image), processor.sam_image(image, fast=True)
    assert fast.dtype == np.uint8
    assert np.abs(exact.astype(int) - fast).max() <= 2


@pytest.mark.parametrize("size", SIZES)
def test_clip_image_is_the_clip_processors_before_scaling(processor: LasagnaProcessor, size: tuple[int, int]):
    image = smooth_image(*size)
    pixels = processor.images.clip_image(image)
    assert (pixels.shape, pixels.dtype) == ((3, 28, 28), np.uint8)
    mean, std = (
        np.array(values)[:, None, None]
        for values in (processor.images.clip.image_mean, processor.images.clip.image_std)
    )
    expected = processor.images.clip(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose((pixels / 255 - mean) / std, expected, atol=1e-5)


def test_images_are_prepared_as_in_the_released_code(golden_part: Path, llama_tokenizer_folder: Path):
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, PAPER)
    clip = CLIPImageProcessorPil.from_pretrained(golden_part / "checkpoints" / "clip-vit-tiny-patch14")
    processor = LasagnaProcessor(
        tokenizer=tokenizer,
        images=ClipImages(clip=clip, num_image_tokens=256),
        sam_image_size=1024,
        format=PAPER,
    )
    arrays = np.load(golden_part / "preprocess.npz")
    mean, std = (np.array(values)[:, None, None] for values in (clip.image_mean, clip.image_std))
    for index in range(2):
        raw = arrays[f"img{index}_raw"]
        np.testing.assert_allclose(
            (processor.images.clip_image(raw) / 255 - mean) / std, arrays[f"img{index}_clip"], atol=1e-5
        )
        resized = processor.sam_image(raw).transpose(1, 2, 0)
        np.testing.assert_array_equal(resized[::8, ::8], arrays[f"img{index}_sam_resized_s8"])


def test_pad_puts_the_image_in_the_middle_of_a_square_of_the_mean_colour(processor: LasagnaProcessor):
    image = smooth_image(20, 51)
    square = pad_to_square(image, processor.images.clip.image_mean)
    mean = tuple(int(value * 255) for value in processor.images.clip.image_mean)
    expected = Image.new("RGB", (51, 51), mean)
    expected.paste(Image.fromarray(image), (0, (51 - 20) // 2))
    np.testing.assert_array_equal(square, np.asarray(expected))
    padding = replace(processor.images, image_aspect_ratio="pad")
    assert padding.clip_image(image)[:, 0, 0].tolist() == list(mean)


def test_saved_processor_is_the_same_after_reload(processor: LasagnaProcessor, tmp_path: Path):
    processor.images = replace(processor.images, image_aspect_ratio="pad")
    processor.prompt = "llava_llama_2"
    processor.save_pretrained(tmp_path)
    reloaded = LasagnaProcessor.from_pretrained(tmp_path)
    assert type(reloaded.images.clip) is CLIPImageProcessorPil
    assert reloaded.token_ids == processor.token_ids
    assert (reloaded.format, reloaded.prompt, reloaded.images.image_aspect_ratio) == (
        PAPER,
        "llava_llama_2",
        "pad",
    )
    assert (reloaded.sam_image_size, reloaded.images.num_image_tokens) == (64, 4)
    image = smooth_image(60, 91)
    np.testing.assert_array_equal(reloaded.images.clip_image(image), processor.images.clip_image(image))
    conversation = Conversation.of("Where is the dog?", ("It is ", SEG, "."))
    assert reloaded.encode(conversation) == processor.encode(conversation)
    with pytest.raises(FileNotFoundError, match=r"processor_config\.json"):
        LasagnaProcessor.from_pretrained(tmp_path / "nothing")


def test_settings_that_do_not_exist_are_errors(processor: LasagnaProcessor):
    fields = {key: value for key, value in vars(processor).items() if key != "token_ids"}
    with pytest.raises(ValueError, match="square, pad"):
        replace(processor.images, image_aspect_ratio="anyres")
    with pytest.raises(ValueError, match="llava_v1"):
        LasagnaProcessor(**{**fields, "prompt": "vicuna"})
    with pytest.raises(ValueError, match="uint8"):
        processor.sam_image(np.zeros((4, 4), dtype=np.uint8))


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_finds_every_seg_by_image_then_row_then_position(processor: LasagnaProcessor, side: str):
    images = [smooth_image(30, 64), smooth_image(80, 40)]
    conversations = [
        Conversation.of("Where is the cat in this picture?", ("It is ", SEG, " and ", SEG, ".")),
        Conversation.of("What does [SEG] mean?", "It is a word."),
        Conversation.of("Where?", (SEG,), "And the dog?", ("Here ", SEG)),
    ]
    masks = [np.ones((2, 30, 64), dtype=np.uint8), np.zeros((2, 80, 40), dtype=np.uint8)]
    batch = processor.collate(images, conversations, [1, 0, 0], masks=masks, padding_side=side)
    assert batch.seg_images == (0, 0, 1, 1)
    assert batch.seg_rows.tolist() == [2, 2, 0, 0]
    assert (batch.input_ids[batch.seg_rows, batch.seg_columns] == processor.token_ids.seg).all()
    assert batch.seg_columns.tolist() == [
        *sorted(batch.seg_columns[:2].tolist()),
        *sorted(batch.seg_columns[2:].tolist()),
    ]
    assert batch.resized_sizes == ((30, 64), (64, 32))
    assert batch.original_sizes == ((30, 64), (80, 40))
    assert batch.sam_images.shape == (2, 3, 64, 64)
    assert batch.sam_images[0, :, 30:].max() == batch.sam_images[1, :, :, 32:].max() == 0
    assert batch.vlm_images["clip_images"].dtype == batch.sam_images.dtype == torch.uint8
    for row, conversation in enumerate(conversations):
        own = batch.attention_mask[row].bool()
        encoded = processor.encode(conversation)
        assert batch.input_ids[row][own].tolist() == encoded.input_ids
        assert batch.labels[row][own].tolist() == encoded.labels
        assert (batch.input_ids[row][~own] == processor.token_ids.pad).all()
        assert (batch.labels[row][~own] == IGNORE_INDEX).all()
        assert bool(own[0 if side == "right" else -1])


def test_collate_without_masks_is_for_inference(processor: LasagnaProcessor):
    batch = processor.collate([smooth_image(8, 8)], [Conversation.of("hello")], [0], padding_side="left")
    assert batch.labels is None
    assert batch.gt_masks is None
    assert batch.seg_rows.shape == batch.seg_columns.shape == (0,)


def test_collate_refuses_what_does_not_fit(processor: LasagnaProcessor):
    images, conversations = [smooth_image(8, 8)], [Conversation.of("where", ("It is ", SEG))]
    none = np.zeros((0, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match="masks of image 0"):
        processor.collate(images, conversations, [0], masks=[none])
    with pytest.raises(ValueError, match="image_of_row"):
        processor.collate(images, conversations, [1])
    with pytest.raises(ValueError, match="image_of_row"):
        processor.collate(images, conversations, [0, 0])
    with pytest.raises(ValueError, match="padding_side"):
        processor.collate(images, conversations, [0], padding_side="up")


def test_plan_and_decode_belong_to_the_query(processor: LasagnaProcessor):
    conversation, plan = processor.plan(["dog", "sky"])
    assert str(conversation.turns[0]) == "Can you segment the dog, sky in this image?"
    assert processor.decode(plan.token_ids) == "dog [SEG], sky [SEG]"
