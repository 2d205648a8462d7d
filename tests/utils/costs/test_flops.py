"""The cost model against torch's FLOP counter, tiny for real and the 7B with fake tensors, and against sums by hand.

The counter sees products of matrices, convolutions and most fused attention, but not that of a CPU; attention is made
of plain products here. It sees the rotary angles, which the model leaves out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from model.config import LasagnaConfig
from model.inputs import ModelInputs
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from model.text.format import SequenceFormat
from model.text.placeholder import Placeholder
from model.token_grid import TokenGrid
from tests.commands import REPOSITORY
from tests.fake_gpu import needs_fake_gpu
from tests.tiny_weights import SAM
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig
from utils.costs import flops, memory
from utils.costs.activations import give_values
from utils.costs.cost_model import CostModel, ImageShape, Work
from utils.costs.decoder_flops import two_way
from utils.costs.flop_formulas import Flops, learned, linear, total
from utils.costs.memory import Count
from utils.costs.model_sizes import model_config
from utils.costs.prediction import bytes_sent

VOCABULARY, NUM_FEATURES, NUM_TEXT = 700, 16, 30
SEVEN_B = ["--config", str(REPOSITORY / "configs" / "lasagna_7b.yaml")]
# Part of the model -> name of its module, with or without adapters around.
MODULES = {
    "CLIP": "vision_tower",
    "projector": "multi_modal_projector",
    "language model": "language_model",
    "lm_head": "lm_head",
    "SAM encoder": "image_encoder",
    "seg_projector": "seg_projector",
    "mask decoder": "mask_decoder",
}


def tiny_shape() -> LasagnaConfig:
    vlm = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=56,
            patch_size=14,
        ),
        projector_hidden_act="linear",
        image_token_index=VOCABULARY - 1,
    )  # fmt: skip
    return LasagnaConfig(
        vlm_config=vlm,
        sam_config=SAM.to_dict(),
        sequence_format=SequenceFormat.named("paper").to_dict(),
        image_token_id=VOCABULARY - 1,
        seg_token_id=VOCABULARY - 2,
        neg_token_id=VOCABULARY - 3,
    )


def batch(num_features: int, num_text: int, sides: tuple[int, int], image_token_id: int) -> ModelInputs:
    """Three rows about two images with three masks; the last 20 tokens are learned."""
    clip_side, sam_side = sides
    length = num_features + num_text
    ids = torch.zeros(3, length, dtype=torch.long)
    ids[:, 3 : 3 + num_features] = image_token_id
    labels = torch.full((3, length), -100)
    labels[:, -20:] = 5
    sizes = (40, 60), (80, 60)
    return ModelInputs(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        learned_rows=torch.arange(3).repeat_interleave(20),
        learned_columns=torch.arange(length - 20, length).repeat(3),
        vlm_images={"clip_images": torch.zeros(2, 3, clip_side, clip_side, dtype=torch.uint8)},
        placeholders=(Placeholder(ids=(), num_image_tokens=1),) * 2,
        token_grids=(TokenGrid(size=(1, 1), region=(0, 0, 40, 60)),) * 2,
        grid_places=(torch.zeros(1, dtype=torch.long),) * 2,
        sam_images=torch.zeros(2, 3, sam_side, sam_side, dtype=torch.uint8),
        resized_sizes=((sam_side // 2, sam_side), (sam_side, sam_side * 3 // 4)),
        original_sizes=sizes,
        image_of_row=(0, 0, 1),
        seg_rows=torch.tensor([0, 2, 2]),
        seg_columns=torch.tensor([length - 9, length - 9, length - 5]),
        seg_images=(0, 1, 1),
        gt_masks=tuple(
            torch.ones(n, *size, dtype=torch.uint8) for n, size in zip((1, 2), sizes, strict=True)
        ),
    )


def count(run) -> FlopCounterMode:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, depth=9) as counter:
        counter.result = run()
    return counter


def of_module(counter: FlopCounterMode, name: str) -> int:
    found = [counts for path, counts in counter.get_flop_counts().items() if path.endswith(f".{name}")]
    return sum(found[0].values()) if found else 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_part_of_a_tiny_step_is_what_the_counter_counts(checkpointing):
    torch.manual_seed(0)
    shape = tiny_shape()
    model = LasagnaForConditionalGeneration(shape)
    model.vlm = add_lora(model.vlm)
    mark_trainable(model)
    model.train()
    if checkpointing:
        model.set_gradient_checkpointing(True)
    inputs = batch(NUM_FEATURES, NUM_TEXT, (56, SAM.image_size), VOCABULARY - 1)
    costs = CostModel(shape=shape, gradient_checkpointing=checkpointing, on_gpu=False)
    parts = costs.training(Work.of_batch(inputs, VOCABULARY - 1))

    forward = count(lambda: model(**inputs.fields()).loss)
    backward = count(forward.result.backward)
    for name, module in MODULES.items():
        if name == "CLIP":  # the tower's layers are called one by one
            continue
        expected = parts[name].forward
        assert of_module(forward, module) == pytest.approx(expected, rel=0.001), name
    whole = total(parts.values())
    # Gradients of the mask losses are taken on the way forward.
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(whole.total, rel=0.001)
    early = parts["mask resize"].backward
    assert forward.get_total_flops() == pytest.approx(whole.forward + early, rel=0.001)


@pytest.fixture(scope="module")
def seven_b():
    config = parse_config(TrainConfig, SEVEN_B)
    return config, model_config(config)


@needs_fake_gpu
def test_the_7b_on_a_gpu_is_what_the_counter_counts(seven_b):
    config, shape = seven_b
    model = memory.build(config, shape)
    with FakeTensorMode(), torch.device("cuda"):
        give_values(model)
        inputs = batch(256, 100, (224, 1024), shape.image_token_id)
        counter = FlopCounterMode(display=False, depth=9)
        with counter:
            model(**inputs.fields())
    inputs = batch(256, 100, (224, 1024), shape.image_token_id)
    parts = CostModel.of(config, shape).training(Work.of_batch(inputs, shape.image_token_id))
    sam = parts["SAM encoder"]
    assert of_module(counter, "image_encoder") == pytest.approx(sam.forward + sam.extra, rel=0.05)
    assert of_module(counter, "language_model") == pytest.approx(parts["language model"].forward, rel=0.05)
    whole = total(parts.values()).forward + sam.extra
    assert counter.get_total_flops() == pytest.approx(whole, rel=0.05)


def test_the_7b_with_backward_is_what_the_counter_counts(seven_b):
    config, shape = seven_b
    model = memory.build(config, shape)
    model.set_gradient_checkpointing(True)
    inputs = batch(256, 100, (224, 1024), shape.image_token_id)
    work = Work.of_batch(replace(inputs, sam_images=None), shape.image_token_id)
    with FakeTensorMode():
        give_values(model)
        inputs = batch(256, 100, (224, 1024), shape.image_token_id)
        embeddings = (torch.zeros(2, 256, 64, 64, dtype=torch.bfloat16),)
        inputs = replace(inputs, sam_images=None, sam_embeddings=embeddings)
        counter = count(lambda: model(**inputs.fields()).loss.backward())
    parts = CostModel.of(config, shape).training(work)
    assert parts["SAM encoder"].total == 0
    assert counter.get_total_flops() == pytest.approx(total(parts.values()).total, rel=0.05)


# ---------------------------------------------------------------------------------------- by hand


def test_a_token_of_llama_costs_two_flops_a_weight_and_attention_grows_with_the_row(seven_b):
    costs = CostModel.of(*seven_b)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    adapters = 32 * 2 * 2 * 4096 * 8
    assert costs.prompt(1) == pytest.approx(2 * (weights + adapters) + 32 * 4 * 4096)
    assert costs.prompt(100, 900) - 100 * costs.prompt(1) == pytest.approx(32 * 4 * 4096 * 100 * 999)
    assert costs.weight_bytes(2) == 2 * (weights + 4096 * 32005)


def test_images_rows_and_masks_add_up(seven_b):
    costs = CostModel.of(*seven_b)
    image = ImageShape(num_masks=2, num_tokens=256, resized_size=(768, 1024), original_size=(480, 640))

    def work(num: int, num_encoded: int) -> Work:
        return Work(images=(image,) * num, num_rows=num, row_length=500, num_learned=50 * num,
                    num_text_tokens=244 * num, num_encoded=num_encoded)  # fmt: skip

    one, three = costs.training(work(1, 1)), costs.training(work(3, 0))
    for name, part in three.items():
        expected = Flops() if name == "SAM encoder" else one[name] * 3
        if name == "mask decoder":  # positions are projected once, however many masks there are
            expected = one[name] + two_way(seven_b[1].sam_settings).for_a_mask() * 4
        assert (part.forward, part.backward, part.extra) == pytest.approx(
            (expected.forward, expected.backward, expected.extra)
        ), name
    assert costs.input_bytes(work(1, 1)) == 3 * 224**2 + 3 * 768 * 1024 + 2 * 480 * 640 + 40 * 500
    assert costs.embedding_bytes(2) == 2 * 256 * 64 * 64


def test_without_a_mask_the_decoder_draws_one_all_the_same(seven_b):
    costs = CostModel.of(*seven_b)
    image = ImageShape(num_masks=0, num_tokens=256, resized_size=(768, 1024), original_size=(480, 640))
    work = Work(images=(image,), num_rows=1, row_length=300, num_learned=9, num_text_tokens=44,
                num_encoded=1)  # fmt: skip
    parts = costs.training(work)
    decoder = two_way(seven_b[1].sam_settings)
    assert parts["mask decoder"] == decoder.for_a_mask() + decoder.for_positions()
    assert parts["seg_projector"] == learned(linear(1, 4096, 4096) + linear(1, 4096, 256))
    assert parts["mask resize"].total == 0


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # 1000 weights, 100 train, 300 in encoders, 4 GPUs, 2 bytes, 3 micro-batches: a ring sends 3/4 of everything
        (1, 0.75 * 2 * (100 + 100)),
        (2, 0.75 * 2 * (3 * 100 + 100)),
        (3, 0.75 * 2 * (3 * 100 + 3 * (1000 + 700))),
    ],
)
def test_what_a_gpu_sends_in_a_step(stage, expected):
    sent = bytes_sent(Count(total=1000, trainable=100), 300, stage, 4, width=2, micro_batches=3)
    assert sent == expected


def test_encoders_in_bfloat16_are_sent_so():
    """200 weights of 2 bytes among 1000 of 4, gathered in forward only."""
    counts = (Count(total=1000, trainable=100, cast=cast) for cast in (0, 200))
    whole, cast = (bytes_sent(count, 300, 3, 4, width=4, micro_batches=3) for count in counts)
    assert whole - cast == 0.75 * 3 * 200 * 2


def test_one_gpu_sends_nothing():
    assert bytes_sent(Count(total=1000, trainable=100), 300, 3, 1, width=2, micro_batches=3) == 0


# ------------------------------------------------------------------------------------- the command


def test_the_command_shows_parts_steps_and_answers_in_80_columns(capsys):
    assert flops.main([*SEVEN_B, "--gpus", "8", "--conversations", "3", "--classes", "10"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    parts = ("language model", "SAM encoder", "mask decoder", "images/s", "disk MB/s", "512", "3 passes")
    for part in (*parts, "64", "shards", "opened/s"):
        assert part in text
    assert "3 conversations of 10 classes" in " ".join(text.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0"], "--gpus must be > 0, got 0"),
        (["--tflops", "-1"], "--tflops must be > 0"),
        (["--masks", "-2"], "--masks must be > 0, got -2"),
        (["--open_ms", "-1"], "--open_ms must be >= 0, got -1"),
        (["--loader_rate", "0"], "--loader_rate must be > 0, got 0"),
        (["--speed", "1"], "unknown flag --speed"),
    ],
)
def test_what_cannot_be_computed_is_said_in_one_line(flags, message, capsys):
    assert flops.main([*SEVEN_B, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
