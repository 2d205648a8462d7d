"""--verify: the files of a folder are those that its manifest lists."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import chat
import test_sem
from merge_lora_weights_and_save_hf_model import main
from model.checkpoints.sums import verify_sums, write_sums
from model.errors import UserError


@pytest.fixture(scope="module")
def merged_once(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "model"
    assert main(["--weight", str(run), "--save_path", str(folder)]) == 0
    return folder


@pytest.fixture
def merged(merged_once, tmp_path) -> Path:
    shutil.copytree(merged_once, tmp_path / "model")
    return tmp_path / "model"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_merged_folder_is_what_its_manifest_lists(merged):
    verify_sums(merged, "--version")
    listed = json.loads((merged / "manifest.json").read_text())["files"]
    weights = (merged / "model.safetensors").read_bytes()
    assert listed["model.safetensors"] == {
        "size": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    assert {"config.json", "processor_config.json", "tokenizer_config.json"} <= listed.keys()
    (merged / "README.md").write_text("edited")
    (merged / ".gitattributes").write_text("of a hub")
    verify_sums(merged, "--version")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_changed_is_named_with_what_was_expected_and_found(name, merged):
    expected = json.loads((merged / "manifest.json").read_text())["files"][name]["sha256"]
    flip(merged / name)
    found = hashlib.sha256((merged / name).read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"{name}: expected SHA-256 {expected}, found {found}"):
        verify_sums(merged, "--version")


def test_files_that_are_cut_missing_or_left_over_are_named(merged):
    config = merged / "config.json"
    config.write_bytes(config.read_bytes()[:-1])
    (merged / "processor_config.json").unlink()
    (merged / "added.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        verify_sums(merged, "--version")
    size = config.stat().st_size
    for part in (f"config.json: expected {size + 1} bytes, found {size}", "processor_config.json is missing",
                 "added.json: expected no such file, found one of 2 bytes"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no manifest.json to compare with"),
        ("{}", "lists no files"),
        ('{"files": []}', "lists no files"),
        ('{"files": {"a": 1}}', "lists no files"),
        ('{"files": {"../a": {}}}', "'../a', which is no file of the folder"),
        ('{"files": {"/etc/passwd": {}}}', "'/etc/passwd', which is no file of the folder"),
        ("{", "is not JSON"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(content, message, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        verify_sums(tmp_path, "--version")


@pytest.mark.parametrize("script", [chat, test_sem], ids=["chat", "test_sem"])
def test_the_scripts_compare_before_they_load(script, merged, monkeypatch, capsys, tmp_path):
    flip(merged / "model.safetensors")
    monkeypatch.setattr(script, "load_model", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.setattr(test_sem, "open_list", lambda *_: {})
    monkeypatch.chdir(tmp_path)
    assert script.main(["--version", str(merged), "--verify"]) == 2
    assert "model.safetensors: expected SHA-256" in capsys.readouterr().err.splitlines()[-1]


def test_the_merge_compares_weights_and_base(arguments, run, folders, capsys, caplog, tmp_path):
    assert main([*arguments, "--verify"]) == 2
    assert f"--weight {run} has no manifest.json" in capsys.readouterr().err.splitlines()[-1]
    weights = tmp_path / "weights"
    shutil.copytree(run.parent / "ckpt_model", weights / "ckpt_model")
    shutil.copy(run, weights)
    write_sums(weights)
    arguments = ["--weight", str(weights), "--save_path", str(tmp_path / "out" / "m"), "--verify"]
    base = tmp_path / "base"
    shutil.copytree(folders.llava, base)
    assert main([*arguments, f"--version={base}"]) == 0
    assert f"--version {base} has no manifest.json; its files are not compared" in caplog.text
    write_sums(base)
    flip(base / "config.json")
    arguments[3] = str(tmp_path / "out" / "n")
    assert main([*arguments, f"--version={base}"]) == 2
    assert (
        f"--version {base} is not what was written: config.json" in capsys.readouterr().err.splitlines()[-1]
    )
