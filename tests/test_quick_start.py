"""docs/quick_start.md, from the first line to the last, as somebody follows it who has just cloned the repository."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.checkpoints.load import load_model
from tests.commands import REPOSITORY, Command, blocks, shell_commands
from utils.config.inference import TOY_ASSISTANT
from utils.toy.layouts.common import SceneSource
from utils.toy.layouts.own import write_own

PAGE = REPOSITORY / "docs" / "quick_start.md"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as on the page: the repository's assets, and images with labels in my_data."""
    folder = tmp_path_factory.mktemp("quick")
    write_own(folder, SceneSource(seed=0, num_train=1, num_val=2))
    (folder / "my_data").symlink_to(folder / "own" / "labels")
    (folder / "assets").symlink_to(REPOSITORY / "assets")
    return folder


def example(start: str) -> str:
    """The only Python example that begins so; it has at most ten lines."""
    (found,) = [block for block in blocks(PAGE, "python") if block.startswith(start)]
    assert len([line for line in found.splitlines() if line.strip()]) <= 10
    return found


def test_an_image_is_segmented_in_ten_lines(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    exec(compile(example("from model"), PAGE.name, "exec"), {})
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "{'car': True, 'person': True, 'road': True, 'boat': False}"
    assert [line.split(":")[0] for line in rest[:3]] == ["car", "person", "road"]
    assert "[SEG]" in rest[3]
    with Image.open("street_car.png") as mask:
        assert np.asarray(mask).any()


def test_own_data_are_evaluated_in_ten_lines(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    for line in shell_commands(PAGE):
        command = Command.parse(line.replace("PATH_TO_LaSagnA_MODEL", "assets/toy/assistant"))
        if command.script in ("utils.data.tools.check", "test_sem", "chat") and "--serve" not in line:
            more = ["--num_threads=1"] if command.script == "test_sem" else []
            assert command.run(*more) == 0, (line, capsys.readouterr().err)
    capsys.readouterr()
    exec(compile(example("from utils"), PAGE.name, "exec"), {})
    name, miou, *_, accuracy = capsys.readouterr().out.split()
    assert name == "mIoU"
    assert 0.2 < float(miou) <= 1
    assert 0.5 < float(accuracy) <= 1
    for written in ("report.md", "samples.html"):
        assert (desk / "runs/my_report" / written).is_file()


def test_the_folder_of_the_page_is_what_is_read(desk):
    (tree,) = [block for block in blocks(PAGE, "text") if block.startswith("my_data")]
    for name in ("classes.txt", "val/images", "val/labels"):
        assert name.split("/")[-1] in tree
        assert (desk / "my_data" / name).exists()


def test_a_server_answers_the_request_of_the_page(desk, monkeypatch):
    pytest.importorskip("fastapi", reason="an optional package of the server")
    pytest.importorskip("openai", reason="the client that the server is tested with")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    from tests.utils.serving.running import Running
    from utils.serving.fetch import Limits

    (request,) = [block for block in blocks(PAGE, "text") if block.startswith("curl")]
    model, _ = load_model(TOY_ASSISTANT)
    with Running(model, limits=Limits(max_bytes=10**7)) as server:
        text = request.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        done = subprocess.run(["bash", "-c", text], cwd=desk, capture_output=True, check=True)
    answer = json.loads(done.stdout)
    assert [(one["label"], one["present"]) for one in answer["classes"]] == [("car", True), ("boat", False)]
