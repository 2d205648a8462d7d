"""--compile: which blocks, what it needs, and that the numbers stay."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from tests.utils.costs.test_flops import NUM_FEATURES, NUM_TEXT, VOCABULARY, batch, tiny_shape
from utils.config.training import TrainConfig
from utils.training.compile import check_compiler, compile_blocks, compiled_blocks


def tiny_model() -> LasagnaForConditionalGeneration:
    torch.manual_seed(0)
    model = LasagnaForConditionalGeneration(tiny_shape())
    model.vlm = add_lora(model.vlm, dropout=0.0)
    mark_trainable(model)
    return model.train()


def test_the_blocks_of_both_stacks_are_compiled_and_keep_their_names():
    model = tiny_model()
    names = list(model.state_dict())
    kinds = [type(block).__name__ for block in compiled_blocks(model)]
    assert kinds == ["LlamaDecoderLayer"] * 3 + ["FusedBlock"] * 2 + ["FusedMaskDecoder"]
    compile_blocks(model, backend="eager")
    assert list(model.state_dict()) == names
    assert all(block._compiled_call_impl is not None for block in compiled_blocks(model))


def test_losses_and_gradients_stay():
    """Traced as for a compiler, then run as it is: what would break, breaks here."""
    results = []
    for compiles in (False, True):
        model = tiny_model()
        model.set_gradient_checkpointing(True)
        if compiles:
            compile_blocks(model, backend="eager")
        losses = []
        for num_text in (NUM_TEXT, NUM_TEXT + 3):  # the second length is traced for all
            inputs = batch(NUM_FEATURES, num_text, (56, 64), VOCABULARY - 1)
            loss = model(**inputs.fields()).loss
            loss.backward()
            losses.append(loss.item())
        gradient = model.get_input_embeddings().weight.grad
        results.append((losses, gradient))
    (plain, plain_gradient), (compiled, compiled_gradient) = results
    assert compiled == pytest.approx(plain, rel=1e-6)
    torch.testing.assert_close(compiled_gradient, plain_gradient, rtol=1e-5, atol=1e-7)


def test_frozen_blocks_are_compiled_on_a_cpu_in_windows_and_in_the_whole_image():
    """The second kind of block is compiled for all sizes, in which chunks of scores cannot be traced."""
    sam = tiny_model().sam.requires_grad_(False)
    side = sam.input_side
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,) = sam.encode(images, [(side, side)])
        for block in sam.encoder_blocks:
            block.compile(backend="aot_eager")
        (compiled,) = sam.encode(images, [(side, side)])
    torch.testing.assert_close(compiled, expected)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"--compile needs a C\+\+ compiler on a CPU and no-such-compiler is not"
    ):
        check_compiler()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--compile needs Triton on a GPU"):
        check_compiler()


def test_stage_3_is_not_compiled():
    with pytest.raises(ValueError, match="--compile does not go with --zero_stage 3"):
        TrainConfig(version="a", compile=True, zero_stage=3)
    assert not TrainConfig(version="a").compile
