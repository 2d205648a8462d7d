"""TrainConfig becomes what deepspeed.initialize takes."""

from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.lr_schedules import WarmupDecayLR

from utils.config.training import TrainConfig
from utils.training.deepspeed_config import deepspeed_config


def config(**changes) -> TrainConfig:
    return TrainConfig(version="llava", **changes)


def test_deepspeed_accepts_every_stage_and_precision():
    for stage in (0, 1, 2, 3):
        for precision in ("fp32", "bf16"):
            parsed = DeepSpeedConfig(deepspeed_config(config(zero_stage=stage, precision=precision), 1))
            assert parsed.zero_optimization_stage == stage
            assert parsed.bfloat16_config.enabled == (precision == "bf16")
            assert parsed.gradient_clipping == 1.0


def test_the_global_batch_counts_processes_and_accumulation():
    settings = deepspeed_config(config(batch_size=2, grad_accumulation_steps=10), 8)
    assert settings["train_batch_size"] == 160
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 10


def test_the_optimizer_is_the_recipes_and_compiles_nothing(monkeypatch):
    optimizer = deepspeed_config(config(lr=1e-3, beta2=0.99), 1)["optimizer"]
    assert optimizer["type"] == "AdamW"
    # torch's own fused kernel, where DeepSpeed's would need a compiler and minutes.
    own_kernel = {"torch_adam": True, "fused": True}
    assert optimizer["params"] == {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, **own_kernel}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    overlaps = [deepspeed_config(config(), n)["zero_optimization"]["overlap_comm"] for n in (1, 2)]
    assert overlaps == [False, True]
    assert deepspeed_config(config(precision="fp16"), 1)["fp16"]["enabled"]


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="--precision fp16 needs a GPU; choose bf16 or fp32"):
        deepspeed_config(config(precision="fp16"), 1)


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 500])
def test_the_learning_rate_rises_falls_and_is_never_negative(warmup_steps):
    settings = config(epochs=2, steps_per_epoch=50, warmup_steps=warmup_steps, lr=1e-3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=settings.lr)
    schedule = WarmupDecayLR(optimizer, **deepspeed_config(settings, 1)["scheduler"]["params"])
    rates = []
    for _ in range(settings.num_steps):
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) >= 0
    if warmup_steps < settings.num_steps:
        assert max(rates) == pytest.approx(1e-3)
        assert abs(peak - warmup_steps) <= 2
