"""docs/own_data.md, command by command, on data of the toy world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands import REPOSITORY, Command, blocks, shell_commands
from utils.common.label_values import IGNORE, NOTHING
from utils.data.class_file import read_class_file
from utils.data.datasets.own_jsonl_lines import parse_line
from utils.toy.demo import write_untrained
from utils.toy.layouts.common import SceneSource
from utils.toy.layouts.own import write_own

PAGE = REPOSITORY / "docs" / "own_data.md"
FOLDERS = {
    "my_data": "labels",
    "my_coco": "things",
    "my_questions": "questions",
}  # of the page -> of the toy world
FEW_STEPS = (
    *(
        "--epochs=1",
        "--steps_per_epoch=1",
        "--warmup_steps=1",
        "--batch_size=1",
        "--grad_accumulation_steps=1",
    ),
    *("--workers=0", "--num_threads=1", "--max_val_samples=1", "--precision=fp32"),
)
MORE = {
    "train_ds": FEW_STEPS,
    "test_sem": ("--max_samples=1", "--num_threads=1", "--precision=fp32"),
    "chat": ("--max_new_tokens=8", "--precision=fp32"),
}


@pytest.fixture(scope="module")
def desk(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as on the page: my_data and the others, ./dataset, and a model to start from."""
    folder = tmp_path_factory.mktemp("own")
    write_own(folder, SceneSource(seed=0, num_train=3, num_val=1))
    for name, written in FOLDERS.items():
        (folder / name).symlink_to(folder / "own" / written)
    for name in ("assets", "configs", "dataset"):
        (folder / name).symlink_to((workspace / name).resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_untrained(folder / "start")
    return folder


def test_every_command_of_the_page_works_one_after_the_other(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    image = min((desk / "my_data/val/images").iterdir())
    for line in shell_commands(PAGE):
        command = Command.parse(
            line.replace("PATH_TO_LaSagnA_MODEL", "start").replace("PATH_TO_IMAGE", str(image))
        )
        assert command.run(*MORE.get(command.script, ())) == 0, (line, capsys.readouterr().err)
    assert json.loads(Path("my_model/config.json").read_text())["model_type"] == "lasagna"
    report = json.loads(Path("runs/my_report/report.json").read_text())
    assert [(result["dataset"], result["task"]) for result in report["datasets"]] == [
        ("own_sem:./my_data|val", "semantic")
    ]
    assert list(Path("runs/my_report").glob("sheet_*.png"))
    assert list(Path("preview").iterdir()) or Path("preview").is_file()


def test_the_page_starts_from_a_folder_and_ends_with_a_conversation():
    scripts = [Command.parse(line).script for line in shell_commands(PAGE)]
    assert scripts == [
        "utils.data.tools.check",
        "utils.data.tools.preview",
        "train_ds",
        "train_ds",
        "merge_lora_weights_and_save_hf_model",
        "test_sem",
        "chat",
    ]


def test_the_class_list_of_the_page_means_what_the_page_says(tmp_path):
    (listed,) = [block for block in blocks(PAGE, "text") if block.startswith("ignore\n")]
    (tmp_path / "classes.txt").write_text(listed, encoding="utf-8")
    file = read_class_file(tmp_path / "classes.txt")
    classes, table = file.classes, file.id_table
    assert list(classes) == ["road", "tree", "building"]
    assert table[:5].tolist() == [IGNORE, 0, 1, 2, NOTHING]
    assert table[255] == table[65535] == IGNORE


def test_the_line_of_the_page_is_read_with_its_mask():
    (text,) = blocks(PAGE, "json")
    line = parse_line(1, json.loads(text))
    assert line.is_question
    assert np.shape(line.masks[0]) == (1, 6)
