"""A merge that cannot be done says why and leaves nothing."""

from __future__ import annotations

import json
import resource
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import save_file

import model.checkpoints.merge as merging
import model.checkpoints.write as writing
from merge_lora_weights_and_save_hf_model import main
from model.checkpoints.write import verify, write_shards
from tests.training_runs import trainable


def assert_nothing_left(tmp_path):
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_room_is_said_before_anything_is_written(arguments, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "are free" in error
    assert "another --save_path" in error
    assert_nothing_left(tmp_path)


def test_a_disk_that_fills_up_leaves_no_half_folder(arguments, tmp_path, capsys, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(*values, **keywords):  # the kernel refuses what goes beyond, as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            return write_shards(*values, **keywords)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(merging, "write_shards", write)
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written" in error
    assert "nothing is left of it" in error
    assert_nothing_left(tmp_path)


def test_an_interrupted_merge_leaves_no_half_folder(arguments, tmp_path, monkeypatch):
    def interrupt(*values, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert_nothing_left(tmp_path)


def test_a_weight_that_reads_back_differently_is_found(arguments, tmp_path, capsys, monkeypatch):
    def spoil(tensors, path, metadata=None):
        save_file(tensors, path, metadata)
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))

    original = merging.write_shards

    def write(*values, **keywords):
        monkeypatch.setattr(writing, "save_file", spoil)
        return original(*values, **keywords)

    monkeypatch.setattr(merging, "write_shards", write)
    assert main(arguments) == 2
    assert "not what was written" in capsys.readouterr().err
    assert_nothing_left(tmp_path)


def test_verify_finds_missing_and_left_over_weights(tmp_path):
    hashes = write_shards(tmp_path, {"a": 8, "b": 8}, lambda name: torch.zeros(2))
    verify(tmp_path, hashes)
    for other in ({"a": hashes["a"]}, {**hashes, "c": hashes["a"]}, {**hashes, "b": "0"}):
        with pytest.raises(ValueError, match="not what was written"):
            verify(tmp_path, other)


def test_a_folder_that_exists_is_not_overwritten(arguments, tmp_path, capsys):
    target = tmp_path / "out" / "merged"
    target.mkdir()
    (target / "mine.txt").touch()
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    assert main(arguments) == 0  # an empty folder is filled
    assert (target / "config.json").is_file()


def test_a_run_of_another_base_stops_with_a_table(folders, run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folders.llava, other)
    weights = torch.load(other / "pytorch_model.bin")
    wide = {name: value for name, value in weights.items() if "layers.1." not in name}
    torch.save(wide, other / "pytorch_model.bin")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    arguments = ["--weight", str(run), "--version", str(other), "--save_path", str(tmp_path / "out" / "m")]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    table = [line.split() for line in lines if line.startswith("  ")]
    assert table[0] == ["name", "expected", "found"]
    assert any("layers.1.self_attn.q_proj.lora_A" in row[0] and row[1] == "-" for row in table[1:])
    assert "--version" in lines[-1]
    assert_nothing_left(tmp_path)


def test_adapters_of_another_width_stop_with_a_table(trained, folders, tmp_path, capsys):
    weights = trainable(trained)
    name = "vlm.base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    weights[name] = torch.zeros(4, 99)
    torch.save(weights, tmp_path / "weights.bin")
    flags = [f"--{key}={value}" for key, value in folders.flags.items()]
    base = ["--version", str(folders.llava), *flags, "--save_path", str(tmp_path / "m")]
    assert main(["--weight", str(tmp_path / "weights.bin"), *base]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "(4, 32)" in error
    assert "(4, 99)" in error


def test_a_base_with_a_layer_missing_stops_with_a_table(folders, run, tmp_path, capsys):
    shutil.copytree(folders.llava, tmp_path / "short")
    weights = torch.load(tmp_path / "short" / "pytorch_model.bin")
    del weights["model.layers.1.mlp.up_proj.weight"]
    torch.save(weights, tmp_path / "short" / "pytorch_model.bin")
    arguments = [
        "--weight",
        str(run),
        "--version",
        str(tmp_path / "short"),
        "--save_path",
        str(tmp_path / "m"),
    ]
    assert main(arguments) == 2
    assert "layers.1.mlp.up_proj.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--version", "clip", "--vision_tower"),
        ("--version", "sam", "pass the folder"),
        ("--version", "weights", "pass the folder"),
        ("--version", "nowhere", "--version"),
        ("--weight", "llava", "--weight"),
        ("--weight", "clip", "--weight"),
        ("--weight", "nowhere", "--weight"),
        ("--vision_tower", "llava", "--vision_tower"),
        ("--vision_pretrained", "clip", "--vision_pretrained"),
        ("--vision_pretrained", "weights", "--vision_pretrained"),
        ("--report", "nowhere", "test_sem.py"),
        ("--lora_alpha", "-1", "--lora_alpha"),
        ("--layout", "gguf", "lisa"),
    ],
)
def test_a_flag_with_another_kind_of_folder_is_named(
    flag, value, message, arguments, folders, run, tmp_path, capsys
):
    kinds = {"clip": folders.clip, "llava": folders.llava, "sam": folders.sam, "weights": run}
    kinds["nowhere"] = tmp_path / "nowhere"
    assert main([*arguments, flag, str(kinds.get(value, value))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert ".frame-" not in error  # nobody needs to know of the copy
    assert_nothing_left(tmp_path)
