from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from model.backbones.clip_images import ClipImages
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.format import SequenceFormat
from model.text.sequence import complex_conversation
from model.text.special_tokens import Special
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens
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
from utils.data.collate import Collate, LengthLimit, build_loader
from utils.data.datasets.ade20k import Ade20k
from utils.data.datasets.llava_instruct import LlavaInstruct
from utils.data.datasets.refer import RefCoco
from utils.data.mixture import Mixture
from utils.data.types import Batch, Recipe, Sample, UnusableItemError


@pytest.fixture(scope="module")
def processor(llama_tokenizer_folder: Path) -> LasagnaProcessor:
    format = SequenceFormat.named("paper")
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    add_special_tokens(tokenizer, format)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LasagnaProcessor(
        tokenizer=tokenizer,
        images=ClipImages(clip=clip, num_image_tokens=4),
        sam_image_size=64,
        format=format,
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
    assert batch.inputs.vlm_images["clip_images"].shape == (12, 3, 28, 28)
    assert batch.inputs.sam_images.dtype == torch.uint8
    assert list(batch.inputs.image_of_row) == rows
    assert len(batch.inputs.input_ids) == len(rows)
    assert batch.inputs.original_sizes == tuple(sample.image.shape[:2] for sample in samples)
    for sample, masks in zip(samples, batch.inputs.gt_masks, strict=True):
        assert masks.dtype == torch.uint8
        assert np.array_equal(masks, sample.masks)
    assert batch.sources == tuple(sample.source for sample in samples)


def test_mask_k_belongs_to_seg_k_of_the_token_ids(stream, processor):
    batch = Collate(processor)([stream[index] for index in range(12)]).inputs
    ids = batch.input_ids[batch.seg_rows, batch.seg_columns]
    assert (ids == processor.token_ids.seg).all()
    assert batch.seg_images == tuple(
        image for image, masks in enumerate(batch.gt_masks) for _ in range(len(masks))
    )
    places = list(zip(batch.seg_rows.tolist(), batch.seg_columns.tolist(), strict=True))
    assert places == sorted(places)


def test_packed_rows_keep_to_the_limit_and_lose_nothing(stream, processor):
    samples = [stream[index] for index in range(12)]
    texts = [processor.encode(row).num_text_tokens for sample in samples for row in sample.conversations]
    limit = max(texts) + 5
    whole, split = (
        Collate(processor, pack_rows=True, max_length=length)(samples).inputs for length in (None, limit)
    )
    assert list(whole.image_of_row) == list(range(12))
    assert 12 < len(split.input_ids) < len(texts)
    is_text = split.attention_mask.bool() & (split.input_ids != processor.token_ids.image)
    assert is_text.sum(1).max() <= limit
    assert split.seg_images == whole.seg_images
    assert (split.labels != -100).sum() == (whole.labels != -100).sum() == len(split.learned_rows)


def flat(batch: Batch) -> list:
    tensors = {name: value for name, value in batch.inputs.fields().items() if name != "gt_masks"}
    masks = [mask.tolist() for mask in batch.inputs.gt_masks]
    tensors |= {"vlm_images": tensors["vlm_images"]["clip_images"]}
    tensors |= {"grid_places": torch.stack(tensors["grid_places"])}
    return [*(v.tolist() if hasattr(v, "tolist") else v for v in tensors.values()), masks, batch.sources]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_are_the_same_with_any_number_of_workers(stream, processor, num_workers):
    settings = {"batch_size": 2, "num_batches": 4, "first_sample": 4, "rank": 1, "world_size": 2}
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


PRESENT, ABSENT = ["wall", "sky", "tree"], ["road", "sofa", "river", "house", "dog", "cat", "floor", "grass"]


def complex_sample(seed: int = 0, present=PRESENT, **switches) -> Sample:
    """A sample about all of PRESENT and ABSENT; the mask of class k of the answer is full of k + 1."""
    format = SequenceFormat.named("paper", random_classes_list=False, **switches)
    rng = np.random.default_rng(seed)
    query, answered = complex_conversation(
        present, ABSENT, rng, format, class_list=sorted([*PRESENT, *ABSENT])
    )
    masks = np.ones((len(answered), 4, 4), dtype=np.uint8) * (1 + np.arange(len(answered)))[:, None, None]
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    return Sample(image=image, conversations=(query,), masks=masks.astype(np.uint8), source="a.jpg")


def text_of(conversation: Conversation) -> tuple[str, str]:
    question, answer = conversation.turns
    return str(question), str(answer)


def num_tokens(processor: LasagnaProcessor, conversation: Conversation) -> int:
    return len(processor.encode(conversation).input_ids) - processor.images.num_image_tokens


def test_a_sample_that_fits_stays_as_it_is_and_is_encoded_once(processor):
    sample = complex_sample()
    fitted = LengthLimit(processor, num_tokens(processor, sample.conversations[0]))(sample)
    assert fitted.conversations == sample.conversations
    assert (fitted.classes_left_out, fitted.conversations_left_out) == (0, 0)
    assert fitted.encoded == (processor.encode(sample.conversations[0]),)


@pytest.mark.parametrize("switches", [{}, {"order_following": False}, {"sequence_augmentation": False}])
def test_a_long_query_asks_for_as_many_absent_classes_as_fit_and_all_present_ones(processor, switches):
    sample = complex_sample(**switches)
    query = sample.conversations[0]
    lengths = [num_tokens(processor, query.with_num_absent(number)) for number in range(len(ABSENT) + 1)]
    assert lengths == sorted(lengths)
    for limit in range(lengths[0], lengths[-1]):
        fitted = LengthLimit(processor, limit)(sample)
        most = max(number for number, length in enumerate(lengths) if length <= limit)
        assert fitted.conversations == (query.with_num_absent(most),)
        assert fitted.classes_left_out == len(ABSENT) - most
        assert np.array_equal(fitted.masks, sample.masks)
        question, answer = text_of(fitted.conversations[0])
        asked = question.removeprefix("Can you segment the ").removesuffix(" in this image?").split(", ")
        assert asked == [name for name in sorted([*PRESENT, *ABSENT]) if name in asked], "order is kept"
        assert set(PRESENT) <= set(asked)
        assert answer.count("[SEG]") == len(PRESENT)
        assert answer.count("[NEG]") == (0 if "sequence_augmentation" in switches else most)


def test_which_absent_classes_stay_is_random_by_seed_and_nothing_else(processor):
    limit = num_tokens(processor, complex_sample().conversations[0].with_num_absent(2))

    def kept(seed: int) -> str:
        return text_of(LengthLimit(processor, limit)(complex_sample(seed)).conversations[0])[0]

    assert kept(3) == kept(3)
    assert len({kept(seed) for seed in range(12)}) > 6


def test_a_query_for_nothing_that_is_there_keeps_one_class(processor):
    sample = complex_sample(present=[])
    shortest = num_tokens(processor, sample.conversations[0].with_num_absent(1))
    fitted = LengthLimit(processor, shortest)(sample)
    assert text_of(fitted.conversations[0])[1].count("[NEG]") == 1
    assert fitted.classes_left_out == len(ABSENT) - 1
    with pytest.raises(
        UnusableItemError, match=f"a.jpg: {shortest} text tokens, more than --model_max_length"
    ):
        LengthLimit(processor, shortest - 1)(sample)


def test_a_conversation_that_does_not_fit_goes_with_its_masks(processor):
    short = [Conversation.of("Where is the dog?", ("It is ", Special("[SEG]"), ".")) for _ in "ab"]
    long = Conversation.of(
        "Where is the cat, " * 9, ("They are ", Special("[SEG]"), " and ", Special("[SEG]"))
    )
    masks = np.arange(1, 5, dtype=np.uint8)[:, None, None] * np.ones((4, 2, 2), dtype=np.uint8)
    sample = Sample(
        image=np.zeros((2, 2, 3), dtype=np.uint8),
        conversations=(short[0], long, short[1]),
        masks=masks,
        source="a.jpg",
    )
    fitted = LengthLimit(processor, num_tokens(processor, long) - 1)(sample)
    assert fitted.conversations == tuple(short)
    assert fitted.masks[:, 0, 0].tolist() == [1, 4]
    assert (fitted.classes_left_out, fitted.conversations_left_out) == (0, 1)
    batch = Collate(processor)([fitted, complex_sample()])
    assert (batch.num_shortened, batch.conversations_left_out, batch.classes_left_out) == (1, 1, 0)


def test_no_sequence_of_a_run_is_longer_than_the_limit(stream, processor):
    """Sample i stays a function of seed and index."""
    limit = 75
    shortened = Mixture(
        stream.sources, stream.rates, recipe=stream.recipe, seed=0, fit=LengthLimit(processor, limit)
    )
    samples = [shortened[index] for index in range(40)]
    batch = Collate(processor)(samples)
    lengths = batch.inputs.attention_mask.sum(1) - processor.images.num_image_tokens
    assert lengths.max() <= limit
    assert batch.num_shortened > 0
    assert [sample.conversations for sample in samples[::-1]] == [
        shortened[index].conversations for index in reversed(range(40))
    ]


def test_moving_a_batch_moves_every_tensor_in_it(stream, processor):
    batch = Collate(processor)([stream[0], stream[1]]).to("meta")
    assert batch.inputs.input_ids.device.type == "meta"
    assert all(mask.device.type == "meta" for mask in batch.inputs.gt_masks)
    assert batch.inputs.original_sizes[0] in ((HEIGHT, WIDTH), (30, 20))


@pytest.mark.parametrize("images", ["sam_images", "clip_images"])
def test_fast_resize_changes_images_by_two_grey_levels_at_most(stream, processor, images):
    samples = [stream[index] for index in range(8)]

    def pixels(inputs):
        found = inputs.sam_images if images == "sam_images" else inputs.vlm_images[images]
        return found.int()

    exact = pixels(Collate(processor)(samples).inputs)
    fast = pixels(Collate(processor, fast_resize=True)(samples).inputs)
    assert (exact - fast).abs().max() <= 2
