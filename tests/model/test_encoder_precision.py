"""Frozen image encoders in bfloat16: close to float32, the rest of the model untouched, for every encoder."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from model import encoder_precision
from model.checkpoints.load import load_model
from model.decoders.build import build_decoder
from model.encoder_precision import cast_encoder, check_frozen, encoders_of, set_encoder_precision
from model.errors import UserError
from model.lora import mark_trainable
from tests.model.test_lasagna import IMAGES, mixed_batch
from tests.tiny_bases import FAMILIES, write_base_model
from tests.tiny_weights import CONCEPT, SAM, SAM2, SAM3, noise_image
from utils.config.inference import TOY_ASSISTANT


@pytest.fixture(autouse=True)
def any_cpu(monkeypatch):
    """Without the instructions it is slow, and computes the same."""
    monkeypatch.setattr(encoder_precision, "cpu_has_bf16", lambda: True)


def relative(actual, expected):
    return float((actual.float() - expected).norm() / expected.norm())


def test_embeddings_of_the_toy_towers_are_within_one_percent_of_float32():
    exact, _ = load_model(TOY_ASSISTANT, dtype=torch.float32)
    model, _ = load_model(TOY_ASSISTANT, dtype=torch.float32, encoder_precision="bf16")
    for image in (noise_image(120, 200), noise_image(256, 256, seed=1)):
        expected, found = exact.encode(image), model.encode(image)
        for ours, theirs in (
            (found.embedding[0], expected.embedding[0]),
            (found.features.tokens[0], expected.features.tokens[0]),
        ):
            assert ours.dtype == torch.float32
            assert 0 < relative(ours, theirs) < 0.01


def test_only_the_encoders_are_cast_and_they_stay_so_when_the_model_is_cast(tiny_model):
    set_encoder_precision(tiny_model, "bf16")
    inside = {id(parameter) for encoder in encoders_of(tiny_model) for parameter in encoder.parameters()}
    for cast in (lambda: None, tiny_model.float, lambda: tiny_model.to("cpu"), tiny_model.float):
        cast()  # DeepSpeed calls float() where a run is in float32
        for name, parameter in tiny_model.named_parameters():
            expected = torch.bfloat16 if id(parameter) in inside else torch.float32
            assert parameter.dtype == expected, name
    twin = deepcopy(tiny_model).float()
    assert twin.sam.image_encoder.pos_embed.dtype == torch.bfloat16


def test_without_the_setting_nothing_changes(tiny_model):
    before = tiny_model.encode(IMAGES[0]).embedding[0]
    set_encoder_precision(tiny_model, "")
    assert torch.equal(tiny_model.encode(IMAGES[0]).embedding[0], before)
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}


def test_a_step_trains_the_rest_in_its_own_precision(tiny_model):
    mark_trainable(tiny_model)
    batch = mixed_batch(tiny_model).fields()
    exact = tiny_model(**batch).loss
    set_encoder_precision(tiny_model, "bf16")
    check_frozen(tiny_model)
    loss = tiny_model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in tiny_model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("settings", [SAM, SAM2, SAM3, CONCEPT], ids=lambda settings: settings.kind)
def test_every_mask_decoder_gives_embeddings_that_the_rest_reads(settings):
    torch.manual_seed(0)
    sam = build_decoder(settings).eval()
    side = settings.image_size
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    exact = sam.encode(images, [(side, side)] * 2)
    cast_encoder(sam.frozen_encoder, torch.bfloat16, sam.embedding_dtype)
    for found, expected in zip(sam.encode(images, [(side, side)] * 2), exact, strict=True):
        assert found.dtype == sam.embedding_dtype == torch.float32
        assert 0 < relative(found, expected) < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_every_base_answers_with_its_tower_in_bfloat16(family, tiny_folders, tmp_path):
    folder = write_base_model(family, tmp_path / family)
    model, _ = load_model(folder, sam=str(tiny_folders.sam), dtype=torch.float32)
    image = noise_image(70, 100)
    with torch.no_grad():
        exact = model.encode(image).features
        set_encoder_precision(model, "bf16")
        found = model.encode(image).features
        assert found.tokens[0].dtype == torch.float32
        assert 0 < relative(found.tokens[0], exact.tokens[0]) < 0.05
        assert {layer.dtype for layers in found.deep for layer in layers} <= {torch.float32}
        assert len(model.segment(image, ["dog", "tree"]).present) == 2


def test_an_encoder_that_trains_is_refused(tiny_model):
    mark_trainable(tiny_model)
    tiny_model.sam.image_encoder.neck[0].weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"frozen encoders, and sam\.image_encoder\.neck\.0\.weight trains"):
        check_frozen(tiny_model)


def test_a_cpu_without_bfloat16_is_told_so(tiny_model, monkeypatch):
    monkeypatch.setattr(encoder_precision, "cpu_has_bf16", lambda: False)
    with pytest.raises(UserError, match=r"--encoder_precision bf16 needs a CPU with AMX .* leave it out"):
        set_encoder_precision(tiny_model, "bf16")
    set_encoder_precision(tiny_model, "")
