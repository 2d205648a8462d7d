"""The memory estimate against counted parameters, bytes computed by hand, and what autograd really keeps."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from model.decoders.concept import ConceptSegmenter
from tests.commands import REPOSITORY
from tests.tiny_weights import CONCEPT
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig
from utils.costs import memory
from utils.costs.activations import activation_bytes, concept_bytes, layer_bytes, mask_bytes, saved_bytes
from utils.costs.memory import Count, estimate
from utils.costs.model_sizes import model_config
from utils.training.deepspeed_config import deepspeed_config

SEVEN_B = ["--config", str(REPOSITORY / "configs" / "lasagna_7b.yaml")]


@pytest.fixture(scope="module")
def recipe():
    """The 7B recipe and its model without memory."""
    config = parse_config(TrainConfig, SEVEN_B)
    return config, memory.build(config, model_config(config))


def test_the_7b_recipe_has_the_parameters_that_are_counted_by_hand(recipe):
    _, model = recipe
    hidden, mlp, vocabulary = 4096, 11008, 32005  # 32000 and [SEG], [NEG], two image markers, <image>
    llama = 32 * (4 * hidden**2 + 3 * hidden * mlp + 2 * hidden) + hidden + 2 * vocabulary * hidden
    lora = 32 * 2 * 2 * hidden * 8
    counted = {
        "vlm.base_model.model.model.language_model": llama - vocabulary * hidden + lora,
        "seg_projector": hidden**2 + hidden + 256 * hidden + 256,
        "vlm.base_model.model.model.multi_modal_projector": 1024 * hidden + hidden + hidden**2 + hidden,
    }
    for name, expected in counted.items():
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == expected, name
    count = memory.count_parameters(model)
    assert count.total == pytest.approx(7.7e9, rel=0.01)
    decoder = sum(p.numel() for p in model.sam.mask_decoder.parameters())
    guess = sum(p.numel() for p in model.sam.mask_decoder.iou_prediction_head.parameters())
    trained = lora + 2 * vocabulary * hidden + counted["seg_projector"] + decoder - guess
    assert count.trainable == trained
    assert trained == pytest.approx(288e6, rel=0.01)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer", "buffers"),
    [
        # 1000 parameters of which 100 train, 4 GPUs, bfloat16: by hand from the formulas of the ZeRO paper
        (0, 2000, 200 + 400, 1200, 0),
        (1, 2000, 200 + 100, 300, 2e9),
        (2, 2000, 50 + 100, 300, 2e9),
        (3, 500, 50 + 100, 300, 1e9 + 2000),
    ],
)
def test_bytes_of_each_stage(stage, weights, gradients, optimizer, buffers):
    row = estimate(Count(total=1000, trainable=100), stage, 4, "bf16", activations=7)
    assert (row.weights, row.gradients, row.optimizer, row.buffers) == (
        weights,
        gradients,
        optimizer,
        buffers,
    )
    assert row.total == weights + gradients + optimizer + buffers + 7


def test_float32_needs_no_second_copy_without_zero():
    row = estimate(Count(total=1000, trainable=100), 0, 4, "fp32", activations=0)
    assert (row.weights, row.gradients, row.optimizer) == (4000, 400, 800)


def test_image_encoders_in_bfloat16_take_half_of_float32(recipe):
    _, model = recipe
    count = memory.count_parameters(model, "bf16")
    encoders = (model.sam.image_encoder, model.base_vlm.model.vision_tower)
    assert count.cast == sum(p.numel() for encoder in encoders for p in encoder.parameters()) > 9e8
    whole = Count(total=count.total, trainable=count.trainable)
    for stage, gpus in ((0, 1), (2, 8), (3, 8)):
        exact, cast = (estimate(one, stage, gpus, "fp32", activations=0) for one in (whole, count))
        saved = 2 * count.cast / (gpus if stage == 3 else 1)
        assert exact.weights - cast.weights == pytest.approx(saved, abs=4)
        assert estimate(count, stage, gpus, "bf16", 0) == estimate(whole, stage, gpus, "bf16", 0)


def test_parts_are_rounded_up_and_cards_are_named():
    row = estimate(Count(total=10, trainable=7), 2, 4, "bf16", activations=0)
    assert row.optimizer == 12 * 2
    for activations, card in ((10**9, 24), (30 * 10**9, 40), (60 * 10**9, 80), (90 * 10**9, None)):
        assert estimate(Count(total=10, trainable=7), 0, 1, "bf16", activations).card == card


def test_the_buckets_are_those_of_the_training_script(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    zero = deepspeed_config(parse_config(TrainConfig, SEVEN_B), 8)["zero_optimization"]
    assert zero["reduce_bucket_size"] == memory.REDUCE_BUCKET
    assert zero["overlap_comm"]
    assert "stage3_max_live_parameters" not in zero


def test_kept_bytes_are_those_of_the_tensors_that_backward_needs():
    layer = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))
    states = torch.zeros(4, 6, requires_grad=True)
    # Both linears need their input, the sigmoid its output, which is the second input.
    assert saved_bytes(layer, lambda: layer(states)) == 4 * (4 * 6 + 4 * 5)
    assert saved_bytes(layer, lambda: layer(states.detach()).detach()) == 4 * (4 * 6 + 4 * 5)
    with torch.no_grad():
        assert saved_bytes(layer, lambda: layer(states)) == 0


def test_activations_of_the_7b_recipe(recipe):
    config, model = recipe
    tokens, hidden, mlp, vocabulary = 2 * (256 + 1024), 4096, 11008, 32005
    layer = layer_bytes(model, tokens)
    # At the least, in bfloat16: q, k, v and the attention's result, gate, up and two products of the MLP. At the
    # most, beside them, six float32 states of the norms and the adapters' inputs after dropout.
    least = 2 * (4 * hidden + 4 * mlp) * tokens
    assert least < layer < least + (6 * 4 + 8 * 2) * hidden * tokens
    assert layer_bytes(model, 2 * tokens) == pytest.approx(2 * layer, rel=0.01)
    checkpoints = 32 * tokens * hidden * 2
    logits = 2**24 * (2 + 2 + 3 * 4)  # of one piece of the text loss, which has several here
    assert tokens * vocabulary > 2**24
    masks = 2 * 10 * mask_bytes(model)
    assert activation_bytes(model, config, 10) == checkpoints + layer + logits + masks


def test_the_table_fits_80_columns_and_names_the_stage(recipe, capsys, monkeypatch):
    config, model = recipe
    count = memory.count_parameters(model)
    rows = [estimate(count, stage, 8, "bf16", 4 * 10**9) for stage in memory.STAGES]
    console = Console(width=80, record=True, color_system=None)
    memory.show(rows, count, model.config, config, 8, 16, console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "2 *" in text
    assert "15.5" in text
    for heading in ("weights", "gradients", "optimizer", "buffers", "activations", "total", "fits on"):
        assert heading in text


def test_the_command_runs_on_the_toy_configuration(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert memory.main(["--config", "configs/toy.yaml", "--gpus", "2", "--batch_size", "1"]) == 0
    assert "2 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--version", "nowhere/some-model"], "no known size (7b, 13b)"),
        (["--vision_pretrained", "sam2_tiny.pt"], "vit_h"),
        (["--speed", "1"], "unknown flag --speed"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(flags, message, capsys):
    assert memory.main([*SEVEN_B, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_names_tell_the_published_sizes():
    flags = ["--version", "x/llava-v1.5-13b", "--vision_tower", "clip-vit-large-patch14-336"]
    config = parse_config(TrainConfig, [*SEVEN_B, *flags, "--vision_pretrained", "sam_vit_b_01ec64.pth"])
    shape = model_config(config)
    assert shape.vlm_config.text_config.hidden_size == 5120
    assert shape.vlm_config.image_seq_length == 576
    assert shape.sam_settings.encoder_depth == 12


def test_folders_that_are_there_are_measured(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    config = parse_config(TrainConfig, ["--config", "configs/toy.yaml"])
    shape = model_config(config)
    assert shape.vlm_config.text_config.hidden_size < 1000
    assert (shape.sam_settings.kind, shape.sam_settings.prompt_embed_dim) == ("sam2", 128)


def test_a_concept_head_takes_the_classes_that_are_recomputed_together():
    sam = ConceptSegmenter(CONCEPT)
    projector = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CONCEPT.prompt_embed_dim))
    model = SimpleNamespace(config=SimpleNamespace(sam_settings=CONCEPT), seg_projector=projector, sam=sam)
    config = parse_config(TrainConfig, [*SEVEN_B, "--precision=fp32", "--batch_size=1"])
    levels = tuple(torch.randn(1, *shape) for shape in CONCEPT.embedding_shapes)
    states = torch.randn(1, CONCEPT.states_per_class, 32)
    real = ConceptSegmenter(CONCEPT)  # another one: the library keeps a tensor of a module's last call
    real.recomputes = False
    parts = nn.ModuleList((projector, real))
    kept = saved_bytes(parts, lambda: real.decode(projector(states), levels, [0]))
    features = 4 * CONCEPT.prompt_embed_dim * CONCEPT.grid_size[0] ** 2 * (16 + 4 + 1)
    one, many, more = (concept_bytes(model, config, number) for number in (1, 8, 16))
    assert one == pytest.approx(features + kept, rel=0.2)  # and the losses of one mask
    assert many - one == pytest.approx(7 * (one - features))
    assert more == many  # eight at a time
    assert mask_bytes(model) < one - features
    assert concept_bytes(SimpleNamespace(sam=None), config, 8) == 0
