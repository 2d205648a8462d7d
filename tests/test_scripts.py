"""Runs the README's commands verbatim on the toy world; and checks every shipped configuration."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor
from tests.commands import README, REPOSITORY, SMALL_RUN, Command, blocks, fill_in, run, shell_commands
from utils.common.command_line import parse_config
from utils.common.processes import without_launcher
from utils.config.chat import ChatConfig
from utils.config.inference import MergeConfig, TestConfig
from utils.config.training import TrainConfig
from utils.serving.fetch import Limits

CONFIG_OF_SCRIPT = {
    "train_ds": TrainConfig,
    "test_sem": TestConfig,
    "chat": ChatConfig,
    "merge_lora_weights_and_save_hf_model": MergeConfig,
}
PAGES = [
    README,
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "assets").glob("*/README.md")),
]


@pytest.fixture(scope="session")
def fp32_weights(workspace, trained_run):
    """The output of zero_to_fp32.py for the run's checkpoint, called as in the README."""
    line = next(line for line in shell_commands(README) if "zero_to_fp32.py" in line)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        Command.parse(line).run()
    return trained_run.folder / "pytorch_model.bin"


@pytest.mark.parametrize("line", shell_commands(README), ids=lambda line: line.split(" -")[0])
def test_every_command_of_the_readme_works(
    line, at_work, merged_model, fp32_weights, trained_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda _: ":quit")
    command = Command.parse(fill_in(line, at_work).replace("PATH_TO_SAVED_MODEL", str(tmp_path / "saved")))
    if command.script == "make":
        targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(command.arguments) <= set(targets)
    elif command.script == "pip":
        names = [name for name in command.arguments if name.endswith(".txt")]
        assert all((REPOSITORY / name).is_file() for name in names)
    elif command.script == "train_ds":
        again = (
            command.arguments == trained_run.argv[: -len(SMALL_RUN)]
        )  # continues, and has nothing left to do
        elsewhere = () if again else ("--dataset_dir=./dataset", "--no_eval", f"--log_base_dir={tmp_path}")
        assert command.run(*SMALL_RUN, *elsewhere) == 0
        assert again or list(tmp_path.glob("*/ckpt_model/latest"))
    else:
        more = {
            "test_sem": ["--max_samples=1", "--num_threads=1"],
            "chat": ["--max_new_tokens=12"],
            "utils.toy.world": ["--num_images=1", f"--out={tmp_path / 'world'}"],
        }
        assert command.run(*more.get(command.script, [])) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_flags_in_the_documentation_exist(page, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for line in shell_commands(page):
        command = Command.parse(line)
        if command.script in CONFIG_OF_SCRIPT and "--help" not in command.arguments:
            parse_config(CONFIG_OF_SCRIPT[command.script], command.arguments)


def test_the_readme_names_every_script_and_its_commands_are_found():
    scripts = [Command.parse(line).script for line in shell_commands(README)]
    assert {*CONFIG_OF_SCRIPT, "zero_to_fp32", "utils.toy.world", "make", "pip"} <= set(scripts)


def test_the_python_example_of_the_readme_runs(workspace, merged_model, capsys):
    (example,) = [block for block in blocks(README, "python") if "from_pretrained" in block]
    exec(compile(fill_in(example, workspace), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_python_examples_about_results_run(workspace, merged_model, capsys):
    names = {}
    for example in blocks(REPOSITORY / "docs" / "results.md", "python"):
        exec(compile(fill_in(example, workspace), "results.md", "exec"), names)
    assert len(names["masks"]) == len(names["entries"]) == len(names["answer"].masks)


def test_the_python_examples_about_serving_run(workspace, merged_model, capsys):
    pytest.importorskip("fastapi", reason="an optional package of the server")
    pytest.importorskip("openai", reason="the client of the example")
    from tests.utils.serving.test_server import Running

    model = LasagnaForConditionalGeneration.from_pretrained(merged_model)
    names = {}
    with Running(model, limits=Limits(max_bytes=10**7)) as server:
        for example in blocks(REPOSITORY / "docs" / "serving.md", "python"):
            text = fill_in(example, workspace).replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
            exec(compile(text, "serving.md", "exec"), names)
    assert len(names["message"].masks) == names["message"].content.count("[SEG]")
    assert names["answer"]["asked"] == ["sky", "tree", "car"]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid_and_its_data_sets_are_known(path):
    from utils.data.dataset_flags import parse_dataset_flags
    from utils.data.registry import parse_val_list

    config = parse_config(TrainConfig, ["--config", str(path)])
    assert parse_dataset_flags(config)
    assert parse_val_list(config.val_dataset_list)


def test_the_7b_configuration_states_the_defaults():
    shipped = parse_config(TrainConfig, ["--config", str(REPOSITORY / "configs" / "lasagna_7b.yaml")])
    default = TrainConfig(version=shipped.version)
    recipe = ("lr", "beta1", "beta2", "weight_decay", "warmup_steps", "grad_clip", "epochs", "steps_per_epoch",
              "batch_size", "grad_accumulation_steps", "lora_r", "lora_alpha", "lora_dropout", "precision",
              "zero_stage", "num_all_classes", "model_max_length", "loss_weights", "sequence_format")  # fmt: skip
    for name in recipe:
        assert getattr(shipped, name) == getattr(default, name), name


@pytest.mark.parametrize("script", CONFIG_OF_SCRIPT)
def test_help_lists_every_setting(script, capsys):
    with pytest.raises(SystemExit) as end:
        run(script, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in CONFIG_OF_SCRIPT[script].__dataclass_fields__)


AT_ONCE = {f"{script}.py": [f"{script}.py"] for script in CONFIG_OF_SCRIPT} | {
    f"utils.{name}": ["-m", f"utils.{name}"]
    for name in ("data.tools.check", "data.tools.preview", "data.tools.shard", "costs.memory", "costs.flops")
}


@pytest.mark.parametrize("command", AT_ONCE)
def test_help_and_mistakes_need_none_of_the_libraries_that_take_seconds(command, tmp_path):
    for name in ("torch", "transformers", "deepspeed"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('imported')")
    environment = without_launcher(os.environ) | {"PYTHONPATH": str(tmp_path)}

    def start(flag: str) -> subprocess.CompletedProcess:
        words = [sys.executable, *AT_ONCE[command], flag]
        return subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)

    page, mistake = start("--help"), start("--hepl")
    assert (page.returncode, page.stderr) == (0, "")
    assert "--config FILE" in page.stdout
    assert (mistake.returncode, mistake.stdout) == (2, "")
    assert mistake.stderr == f"{command}: unknown flag --hepl; did you mean --help?\n"


# ------------------------------------------------------------------------- from checkpoint to model


def test_every_way_from_a_checkpoint_to_a_model_gives_the_same_weights(
    at_work, trained_run, merged_model, fp32_weights, tmp_path
):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    file = tmp_path / "pytorch_model.bin"
    torch.save(get_fp32_state_dict_from_zero_checkpoint(str(trained_run.folder / "ckpt_model")), file)
    base = ["--version", "base/llava", "--vision_tower", "base/clip", "--vision_pretrained", "base/sam.pth",
            "--lora_alpha", 16, "--precision", "fp32"]  # fmt: skip
    expected = load_file(merged_model / "model.safetensors")
    for weight, target in ((fp32_weights, tmp_path / "folder"), (file, tmp_path / "file")):
        assert (
            run("merge_lora_weights_and_save_hf_model", *base, "--weight", weight, "--save_path", target) == 0
        )
        merged = load_file(target / "model.safetensors")
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_a_merged_folder_stands_alone(merged_model, toy_world):
    model = LasagnaForConditionalGeneration.from_pretrained(merged_model)
    processor = LasagnaProcessor.from_pretrained(merged_model)
    assert processor.format == model.processor.format
    image = np.asarray(Image.open(min((toy_world / "coco" / "val2017").iterdir())).convert("RGB"))
    names = ["sky", "tree", "sofa"]
    found = model.segment(image, classes=names)
    assert list(found.names) == names
    assert found.masks.shape == (sum(found.present), *image.shape[:2])
    answer = model.chat(image, "Can you segment the tree?", max_new_tokens=8)
    assert answer.masks.shape[1:] == image.shape[:2]


def test_training_goes_on_from_a_merged_model(at_work, merged_model, tmp_path):
    flags = [
        f"--version={merged_model}",
        "--dataset_dir=./dataset",
        f"--log_base_dir={tmp_path}",
        "--no_eval",
    ]
    assert run("train_ds", *flags, *SMALL_RUN, "--epochs=1", "--steps_per_epoch=1", "--exp_name=warm") == 0
    assert run("merge_lora_weights_and_save_hf_model", "--weight", tmp_path / "warm" / "ckpt_model",
               "--save_path", tmp_path / "again") == 0  # fmt: skip
    assert (tmp_path / "again" / "config.json").is_file()


def test_an_evaluation_of_every_task_writes_a_report(at_work, merged_model, tmp_path):
    entries = "ade20k,cocostuff,cityscapes,refcoco|unc|val,grefcoco|unc|val,ReasonSeg|val,llava_instruct_150k"
    assert run("test_sem", "--version", merged_model, "--dataset_dir=./dataset", "--val_dataset_list", entries,
               "--max_samples=1", "--precision=fp32", "--report_dir", tmp_path) == 0  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert [result["dataset"] for result in report["datasets"]] == entries.split(",")
    assert {
        "semantic",
        "presence",
        "referring",
        "generalized",
        "no_target",
        "reasoning",
        "vqa",
    } <= report.keys()


def test_chat_writes_masks_and_overlay_of_a_real_model(workspace, merged_model, tmp_path):
    image = min((workspace / "dataset/coco/val2017").iterdir())
    flags = ("--version", merged_model, "--image", image, "--vis_save_path", tmp_path, "--precision=fp32")
    assert run("chat", *flags, "--classes", "sky, tree, sofa", "--presence_threshold=0") == 0
    names = sorted(path.name.removeprefix(f"{Path(image).stem}_") for path in tmp_path.iterdir())
    assert names == ["mask_1_sky.png", "mask_2_tree.png", "mask_3_sofa.png", "overlay.png"]
