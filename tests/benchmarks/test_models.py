"""The benchmarks' models have the documented sizes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import models
from model.checkpoints.agreement import check_agreement


def test_tiny_is_the_toy_base_and_trains_what_a_run_trains():
    model, processor = models.build("tiny", lora=True)
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert not any("image_encoder" in name or "vision_tower" in name for name in trained)
    assert {m.p for name, m in model.named_modules() if "lora_dropout" in name and hasattr(m, "p")} <= {0.0}
    assert processor.images.num_image_tokens == 100
    check_agreement(model)


def test_without_adapters_nothing_trains():
    model, _ = models.build("tiny")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_medium_has_the_sizes_of_the_tables():
    model = models.make_random(models.RANDOM_SIZES["medium"], device="meta")  # its shape needs no memory
    text, vision = model.config.vlm_config.text_config, model.config.vlm_config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (512, 1376, 8)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size) == (1024, 24, 224)
    sam = model.config.sam_settings
    assert (sam.image_size, sam.encoder_dim, sam.encoder_depth) == (1024, 768, 12)
    assert model.processor.images.num_image_tokens == 256
    assert model.config.image_token_id == text.vocab_size - 1 >= 32000
    assert model.base_vlm.lm_head.weight.shape == (text.vocab_size, 512)
    assert model.can_pack_rows
    check_agreement(model)


def test_an_unknown_size_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="unknown size 'huge'; known: tiny, medium"):
        models.build("huge")
