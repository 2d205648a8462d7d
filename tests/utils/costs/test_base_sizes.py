"""The configurations of bases other than LLaVA: they load, and what they cost is told without their weights."""

from __future__ import annotations

import pytest

from tests.commands import REPOSITORY
from utils.common.command_line import parse_config
from utils.costs.activations import activation_bytes
from utils.costs.memory import build, count_parameters
from utils.costs.model_sizes import model_config
from utils.costs.settings import MemoryConfig
from utils.costs.vision_flops import num_image_tokens


# Parameters of the base and of SAM ViT-H, 0.64 billion, together.
@pytest.mark.parametrize(
    ("name", "billions", "family", "num_tokens"),
    [
        ("qwen3_vl_4b", 4.44 + 0.64, "qwen3_vl", 300),
        ("internvl3_8b", 7.94 + 0.64, "internvl", 1792),
        ("smolvlm_500m", 0.51 + 0.64, "smolvlm", 640),
    ],
)
def test_a_configuration_loads_and_its_memory_is_told(name, billions, family, num_tokens):
    config = parse_config(MemoryConfig, ["--config", str(REPOSITORY / f"configs/{name}.yaml")])
    shape = model_config(config)
    assert (shape.vlm_config.model_type, shape.prompt) == (family, "chat_template")
    model = build(config, shape)
    count = count_parameters(model)
    assert count.total / 1e9 == pytest.approx(billions, rel=0.01)
    assert 0 < count.trainable / count.total < 0.01
    assert num_image_tokens(shape.vlm_config, config) == num_tokens
    assert 1e8 < activation_bytes(model, config, config.masks) < 1e10
    is_trained = [n for n, p in model.named_parameters() if p.requires_grad and n.startswith("vlm.")]
    assert is_trained
    assert all(".lora_" in each for each in is_trained)
