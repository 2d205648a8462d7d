"""What a training run shows: header, lines, TensorBoard, the next commands; and what it does without training."""

from __future__ import annotations

import io
import shlex

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import QUICK, complaint, losses_of, run
from tests.stopped_runs import stop_before
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig

VALIDATED = ("--no_eval=false", "--val_dataset_list=ade20k,ReasonSeg|val", "--max_val_samples=3")


@pytest.fixture(scope="module")
def watched(workspace, tmp_path_factory):
    """A validated run of two epochs, interrupted in the second, and what its first and its second start printed."""
    folder = tmp_path_factory.mktemp("watched")
    flags = [*QUICK, *VALIDATED, f"--log_base_dir={folder}", "--exp_name=a"]
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        for step in (4, None):
            out = io.StringIO()
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr("sys.stdout", out)
                if step is not None:
                    stop_before(inner, step=step)
                    with pytest.raises(KeyboardInterrupt):
                        run("train_ds", *flags)
                else:
                    assert run("train_ds", *flags) == 0
            printed.append(out.getvalue())
    return folder / "a", printed


def test_the_header_says_what_is_trained_on_what_and_where_it_goes(watched):
    folder, (first, _) = watched
    words = " ".join(first.split())
    for part in (
        "base/llava (llava)",
        "base/sam.pth (sam)",
        "LoRA",
        "mask decoder",
        "ade20k|train, 8 items",
        "1 image a step: 1 in a micro-batch x 1 accumulated x 1 process",
        "4 (2 epochs of 2 steps)",
        "sdpa; the conversations of an image share one row",
        "fp32, ZeRO 2, gradient checkpointing on; CPU",
        "after each epoch: ade20k (3), ReasonSeg|val (3); ade20k decides",
        f"{folder / 'losses.jsonl'}",
    ):
        assert part in words, part


def test_each_step_is_a_line_and_no_line_is_wider_than_a_terminal(watched):
    folder, (first, second) = watched
    lines = [line for line in (first + second).splitlines() if " eta " in line]
    assert [line.split("/")[0].strip() for line in lines] == ["1", "2", "3", "3", "4"]
    for line in lines:
        for part in ("loss", "ce", "bce", "dice", "tok/s", "GB"):
            assert part in line
    wide = [line for line in (first + second).splitlines() if len(line) > 80]
    assert not [line for line in wide if str(folder) not in line], wide


def test_curves_go_on_without_a_step_twice(watched):
    folder, _ = watched
    board = EventAccumulator(str(folder)).Reload()
    scalars = board.Tags()["scalars"]
    for tag in ("train/total", "train/lr", "train/grad_norm", "speed/text_tokens_per_second"):
        assert [point.step for point in board.Scalars(tag)] == [1, 2, 3, 4], tag
    assert all(point.value > 0 for point in board.Scalars("train/grad_norm"))
    assert [point.step for point in board.Scalars("val/ade20k/semantic/miou")] == [2, 4]
    seen = [tag for tag in scalars if tag.startswith("samples/") and tag != "samples/unusable"]
    totals = {tag: board.Scalars(tag)[-1].value for tag in seen}
    assert totals.pop("samples/all") == sum(totals.values()) == 4
    assert "grad_norm" not in losses_of(folder)[0]


def test_the_same_samples_are_shown_after_each_epoch(watched):
    folder, _ = watched
    board = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    tags = board.Tags()["images"]
    assert sorted(tags) == sorted(
        f"val_samples/{name}/{k}" for name in ("ade20k", "ReasonSeg|val") for k in (1, 2, 3)
    )
    for tag in tags:
        assert [shown.step for shown in board.Images(tag)] == [2, 4]
        image = Image.open(io.BytesIO(board.Images(tag)[0].encoded_image_string))
        assert image.width > 3 * 224  # image, ground truth and prediction beside each other


def test_the_end_names_the_best_weights_and_commands_that_run(watched, at_work, capsys):
    folder, (_, second) = watched
    end = second[second.index("best: step ") :]
    assert "semantic.miou of ade20k" in end
    commands = end[end.index("next:") :].replace("\\\n", " ").splitlines()[1:]
    typed = [shlex.split(line) for line in commands if not line.startswith("#")]
    assert [words[1] for words in typed] == [
        "merge_lora_weights_and_save_hf_model.py",
        "test_sem.py",
        "chat.py",
    ]
    assert str(folder / "ckpt_best") in typed[0]
    merge, evaluate, ask = ((words[1].removesuffix(".py"), *words[2:]) for words in typed)
    assert run(*merge) == 0
    assert run(*evaluate, "--max_samples=1") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", lambda _: ":quit")
        assert run(*ask) == 0
    capsys.readouterr()


def test_a_run_of_its_saved_settings_has_the_same_losses(watched, at_work, tmp_path):
    folder, _ = watched
    saved = folder / "ckpt_model" / "lasagna" / "run.yaml"
    assert run("train_ds", "--config", saved, f"--log_base_dir={tmp_path}", "--no_eval") == 0
    assert (tmp_path / "a" / "losses.jsonl").read_bytes() == (folder / "losses.jsonl").read_bytes()


# ------------------------------------------------------------------------------- without training


def test_printed_settings_are_read_again(at_work, tmp_path, capsys):
    flags = [
        *QUICK,
        "--max_bad_steps=none",
        "--save_every_minutes=none",
        "--max_val_samples=3",
        "--exp_name=a: 1e5",
    ]
    path = tmp_path / "settings.yaml"
    assert run("train_ds", *flags, "--print_config") == 0
    path.write_text(printed := capsys.readouterr().out)
    assert parse_config(TrainConfig, ["--config", str(path)]) == parse_config(TrainConfig, flags)
    assert "print_config" not in yaml.safe_load(printed)
    assert run("train_ds", "--config", path, "--print_config") == 0
    assert capsys.readouterr().out == printed


def test_a_dry_run_trains_one_step_on_every_data_set_and_leaves_nothing(at_work, tmp_path, capsys):
    flags = [*QUICK, f"--log_base_dir={tmp_path / 'runs'}", "--batch_size=2", "--report_to=tensorboard"]
    assert run("train_ds", *flags, "--dry_run", "--spatial_prompt") == 0  # with five losses
    out = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    table = out[out.index("dry run: ") :].splitlines()
    rows = {
        line.split()[0]: line.split()[1:] for line in table if line.startswith(("ade20k|", "llava", "all"))
    }
    images, low, mean, high, *masks = map(float, rows["ade20k|train"])
    assert images == 2
    assert 0 < low <= mean <= high
    assert masks[2] > 0
    assert rows["llava_instruct_150k|train"][-3:] == ["0", "0.0", "0"]  # answers in words
    assert float(rows["all"][0]) == 2 * (len([line for line in table if "|train" in line]))
    for part in ("memory estimated: ", "memory measured: ", "nothing was saved"):
        assert part in out
    assert max(map(len, table)) <= 80


def test_a_dry_run_does_not_touch_an_earlier_run(watched, at_work, capsys):
    folder, _ = watched
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    flags = [*QUICK, f"--log_base_dir={folder.parent}", "--exp_name=a", "--lr=0.5"]
    assert run("train_ds", *flags, "--dry_run", "--dataset=vqa") == 0
    assert "nothing was saved" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--report_to=wandb,tensorbord", ["'tensorbord' is not known", "tensorboard, wandb, trackio, none"]),
        ("--report_to=none,wandb", ["none stands alone"]),
        ("--report_to=,", ["is empty"]),
    ],
)
def test_trackers_that_cannot_be_are_one_line(flag, parts, at_work, tmp_path, capsys):
    assert run("train_ds", *QUICK, f"--log_base_dir={tmp_path / 'runs'}", flag) == 2
    complaint(capsys, *parts)
    assert not (tmp_path / "runs").exists()


def test_without_trackers_only_the_losses_are_written(at_work, tmp_path):
    flags = [*QUICK, f"--log_base_dir={tmp_path}", "--exp_name=a", "--epochs=1"]
    assert run("train_ds", *flags, "--report_to=none") == 0
    assert len(losses_of(tmp_path / "a")) == 2
    assert not list((tmp_path / "a").glob("events*"))
