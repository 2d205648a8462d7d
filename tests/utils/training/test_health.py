"""Steps whose loss or gradient is not finite, in every ZeRO stage: skipped, counted, named, and the end of a run."""

from __future__ import annotations

from types import SimpleNamespace

import deepspeed
import pytest
import torch
from torch import nn

from utils.common.distributed import set_launch_environment
from utils.config.training import TrainConfig
from utils.training.deepspeed_config import deepspeed_config
from utils.training.health import DivergedError, Watch, check_weights
from utils.training.progress import BadSteps


@pytest.fixture
def start(workspace):
    """`start(stage, precision)`: an engine around two layers, two micro-batches a step."""

    def build(stage: int, precision: str):
        set_launch_environment()
        deepspeed.ops.__compatible_ops__ = {}
        if not torch.distributed.is_initialized():
            deepspeed.init_distributed("gloo", verbose=False)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        if precision == "bf16":
            model = model.bfloat16()
        config = TrainConfig(version="any", zero_stage=stage, precision=precision, batch_size=1,
                             grad_accumulation_steps=2, warmup_steps=2, lr=0.1)  # fmt: skip
        return deepspeed.initialize(
            model=model, model_parameters=list(model.parameters()), config=deepspeed_config(config, 1)
        )[0]

    return build


def step(engine, watch: Watch, *factors: float) -> None:
    """One optimizer step; each micro-batch's loss, or with "g" its gradient alone, is multiplied by a factor."""
    dtype = next(engine.module.parameters()).dtype
    for index, factor in enumerate(factors):
        inputs = torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=dtype)
        output = engine(inputs)
        if factor == "g":
            output.register_hook(lambda gradient: gradient * torch.inf)
        loss = output.pow(2).mean() * (1.0 if factor == "g" else factor)
        loss = watch.see(SimpleNamespace(sources=(f"image{index}.jpg",)), loss)
        engine.backward(loss)
        if index == len(factors) - 1:
            watch.before_step()
        engine.step()


def weights_of(engine) -> list[torch.Tensor]:
    return [getattr(p, "ds_tensor", p).detach().clone() for p in engine.module.parameters()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_changes_nothing_in_every_stage(stage, precision, start, caplog):
    engine, bad = start(stage, precision), BadSteps()
    watch = Watch(engine)
    step(engine, watch, 1.0, 1.0)
    assert watch.after_step(1, bad, None)
    step(engine, watch, 1.0, 1.0)
    assert watch.after_step(2, bad, None)
    for number, factors in enumerate(((1.0, torch.nan), (torch.inf, 1.0), ("g", 1.0)), 3):
        before, rate = weights_of(engine), engine.get_lr()
        step(engine, watch, *factors)
        assert not watch.after_step(number, bad, None)
        assert all(torch.equal(now, then) for now, then in zip(weights_of(engine), before, strict=True))
        assert engine.get_lr() == rate
    assert (bad.total, bad.in_row) == (3, 3)
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert [line.split("Samples: ")[1] for line in told] == [
        "image1.jpg",
        "image0.jpg",
        "image0.jpg, image1.jpg",
    ]
    assert "the loss is not finite" in told[0]
    assert "the gradient is not finite" in told[2]
    before = weights_of(engine)
    step(engine, watch, 1.0, 1.0)
    assert watch.after_step(6, bad, None)
    assert (bad.total, bad.in_row) == (3, 0)
    after = weights_of(engine)
    assert any(not torch.equal(now, then) for now, then in zip(after, before, strict=True))
    assert all(torch.isfinite(value).all() for value in after)
    check_weights(engine, 6)


@pytest.mark.parametrize("stage", [0, 2])
def test_the_watch_does_not_change_a_gradient(stage, start):
    plain, watched = start(stage, "fp32"), start(stage, "fp32")
    watch = Watch(watched)
    inputs = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    for _ in range(3):
        for _ in range(2):
            plain.backward(plain(inputs).pow(2).mean())
            plain.step()
        step(watched, watch, 1.0, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(plain), weights_of(watched), strict=True))


def test_so_many_in_a_row_end_the_run(start):
    engine, bad = start(2, "fp32"), BadSteps()
    watch = Watch(engine)
    step(engine, watch, torch.nan, 1.0)
    watch.after_step(1, bad, 2)
    step(engine, watch, torch.nan, 1.0)
    with pytest.raises(DivergedError, match=r"2 steps in a row .*--max_bad_steps") as caught:
        watch.after_step(2, bad, 2)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("stage", [0, 2])
def test_weights_and_optimizer_that_are_not_finite_are_named(stage, start):
    engine = start(stage, "fp32")
    step(engine, Watch(engine), 1.0, 1.0)
    check_weights(engine, 1)
    next(iter(engine.module.parameters())).data[0, 0] = torch.inf
    with pytest.raises(DivergedError, match=r"weights are not finite and are not saved: 0\.weight;"):
        check_weights(engine, 1)
    next(iter(engine.module.parameters())).data[0, 0] = 0
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    next(iter(inner.state.values()))["exp_avg_sq"].view(-1)[0] = torch.nan
    with pytest.raises(DivergedError, match="the optimizer's exp_avg_sq"):
        check_weights(engine, 1)
