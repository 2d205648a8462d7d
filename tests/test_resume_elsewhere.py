"""A run goes on with another number of processes, and with a fresh optimizer, in every ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from model.checkpoints.checkpoint import open_trained
from tests.commands import QUICK, complaint, losses_of, run
from tests.stopped_runs import check_same_weights
from tests.two_processes import run_in_two

PRECISIONS = {
    0: "bf16",
    1: "fp32",
    2: "bf16",
    3: "fp32",
}  # of each stage; all other combinations share their code
# Three steps, saved after each; one process accumulates two micro-batches, with dropout.
FLAGS = (*QUICK, "--lora_dropout=0.2", "--grad_accumulation_steps=2", "--epochs=1", "--steps_per_epoch=3",
         "--save_every_steps=1", "--keep_last=9")  # fmt: skip
CLOSE = {"fp32": 1e-4, "bf16": 0.02}  # a loss is about 8, of which bf16 has three digits


def stopped_after(step: int, source: Path, target: Path) -> None:
    """A copy of a run as it was after a step."""
    shutil.copytree(source, target)
    for save in (target / "ckpt_model").glob("global_step*"):
        if int(save.name.removeprefix("global_step")) > step:
            shutil.rmtree(save)


def train(flags: list[str], folder: Path, *more: str) -> int:
    linear = torch.nn.functional.linear
    try:
        return run("train_ds", *flags, f"--log_base_dir={folder.parent}", f"--exp_name={folder.name}", *more)
    finally:
        torch.nn.functional.linear = linear  # ZeRO-3 replaces it for good


@pytest.fixture(scope="module")
def runs(workspace, tmp_path_factory) -> Path:
    """Runs of one process, and what they become on another number of them, by stage.

    alone0      three steps of one process
    more0       the first step of one process, the others of two
    fewer0      the first step of one process, the second of two, the third of one again
    """
    folder = tmp_path_factory.mktemp("runs")
    flags = {
        stage: [*FLAGS, f"--zero_stage={stage}", f"--precision={name}"] for stage, name in PRECISIONS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        for stage in PRECISIONS:
            assert train(flags[stage], folder / f"alone{stage}") == 0
            stopped_after(1, folder / f"alone{stage}", folder / f"more{stage}")
        commands = [
            ["train_ds", *flags[stage], f"--log_base_dir={folder}", f"--exp_name=more{stage}"]
            for stage in PRECISIONS
        ]
        run_in_two(commands, workspace)
        for stage in PRECISIONS:
            stopped_after(2, folder / f"more{stage}", folder / f"fewer{stage}")
            assert train(flags[stage], folder / f"fewer{stage}") == 0
    return folder


@pytest.mark.launcher
@pytest.mark.parametrize("stage", PRECISIONS)
def test_a_run_goes_on_with_more_and_with_fewer_processes(stage, runs):
    alone = losses_of(runs / f"alone{stage}")
    weights = open_trained(runs / f"alone{stage}" / "ckpt_model").weights
    for name in ("more", "fewer"):
        folder = runs / f"{name}{stage}"
        for ours, theirs in zip(losses_of(folder), alone, strict=True):
            assert ours == pytest.approx(theirs, abs=CLOSE[PRECISIONS[stage]])
        if PRECISIONS[stage] == "fp32":
            check_same_weights(open_trained(folder / "ckpt_model").weights, weights)
        counts = [json.loads((place / "data.json").read_text()) for place in (folder, runs / f"alone{stage}")]
        assert counts[0] == counts[1]
        parts = len(list((folder / "ckpt_model" / "global_step3").glob("*_optim_states.pt")))
        assert parts == (0 if stage == 0 else 2 if name == "more" else 1)


@pytest.mark.filterwarnings("ignore:.*is deprecated.*")
@pytest.mark.parametrize("stage", [0, 2])
def test_weights_go_on_without_their_optimizer(stage, at_work, tmp_path, capsys):
    """The step that follows has a fresh optimizer, and other settings of it; data, step and schedule go on."""
    flags = [*FLAGS, f"--zero_stage={stage}", f"--precision={PRECISIONS[stage]}"]
    assert train(flags, tmp_path / "whole") == 0
    stopped_after(2, tmp_path / "whole", tmp_path / "run")
    before = losses_of(tmp_path / "whole")
    capsys.readouterr()
    assert train(flags, tmp_path / "run", "--lr=1e-2") == 2
    complaint(capsys, "--lr was 0.001, is 0.01", "--resume_weights_only")
    assert train(flags, tmp_path / "run", "--lr=1e-2", "--resume_weights_only") == 0
    after = losses_of(tmp_path / "run")
    assert after[:2] == before[:2]
    # The loss of step 3 is that of the weights after step 2: the same, however they are stepped from there.
    assert after[2] == pytest.approx({**before[2], "lr": after[2]["lr"]}, abs=1e-6)
    assert after[2]["lr"] == pytest.approx(10 * before[2]["lr"])
    assert steps_of(tmp_path / "run") == {1.0}
    assert steps_of(tmp_path / "whole") <= {3.0, 4.0}  # without ZeRO, DeepSpeed begins with an empty step


def steps_of(run_folder: Path) -> set[float]:
    """How many steps AdamW has counted, over its parameters, in the newest save."""
    save = run_folder / "ckpt_model" / "global_step3"
    found: set[float] = set()

    def visit(value: object) -> None:
        if isinstance(value, dict):
            if "exp_avg" in value:
                found.add(float(value["step"]))
            for entry in value.values():
                visit(entry)

    for path in save.glob("*.pt"):
        visit(torch.load(path, weights_only=False))
    return found


def test_another_step_is_said_to_be_one(at_work, tmp_path, caplog):
    flags = [*FLAGS, "--zero_stage=2", "--precision=fp32"]
    assert train(flags, tmp_path / "run") == 0
    stopped_after(2, tmp_path / "run", tmp_path / "other")
    assert train(flags, tmp_path / "other", "--grad_accumulation_steps=4") == 0
    for part in ("a step is 4 images from here on, 2 before", "2 times as many", "--lr is not scaled"):
        assert part in caplog.text
    counted = json.loads((tmp_path / "other" / "data.json").read_text())
    assert counted["samples"] == 2 + 2 + 4
    caplog.clear()
    # The same command again keeps it, whatever the first start of the run was.
    stopped_after(2, tmp_path / "other", tmp_path / "again")
    assert train(flags, tmp_path / "other", "--grad_accumulation_steps=4") == 0
    assert "a step" not in caplog.text
