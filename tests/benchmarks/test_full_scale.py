"""The full-scale benchmark, at a size that takes a second."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import full_scale
from model.decoders.sam import SamSettings
from utils.config.training import TrainConfig
from utils.costs.model_sizes import model_config


@pytest.fixture
def made(tmp_path):
    full_scale.run_step("make", tmp_path, "tiny")
    return tmp_path


def test_all_steps_run_and_are_reported(tmp_path, capsys):
    out = tmp_path / "out" / "full_scale.json"
    assert (
        full_scale.main(["--scale", "tiny", "--in_process", "--folder", str(tmp_path), "--out", str(out)])
        == 0
    )
    text = capsys.readouterr().out
    content = json.loads(out.read_text())
    names = ["make the random weights", "merge", "load", "answer"]
    assert [step["step"] for step in content["steps"]] == names
    for step in content["steps"]:
        assert step["seconds"] > 0
        assert 0.05 < step["peak_gigabytes"] < 20
        assert f"| {step['step']} | {step['seconds']:.1f} |" in text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the weights are gone


def test_a_step_in_a_process_of_its_own_is_asked_for_as_it_is_parsed(tmp_path, monkeypatch):
    asked = []

    def answer(command, **keywords):
        asked.append(command)
        printed = 'the merge prints too\n[{"step": "merge", "seconds": 1.0, "peak_gigabytes": 2.0}]\n'
        return subprocess.CompletedProcess(command, 0, stdout=printed)

    monkeypatch.setattr(full_scale.subprocess, "run", answer)
    steps = full_scale.run_apart("merge", tmp_path, "tiny", num_threads=3)
    assert steps == [{"step": "merge", "seconds": 1.0, "peak_gigabytes": 2.0}]
    [command] = asked
    assert command[1:3] == ["-m", "benchmarks.full_scale"]
    parsed = full_scale.parse_arguments(command[3:])
    assert (parsed.step, parsed.folder, parsed.scale, parsed.num_threads) == ("merge", tmp_path, "tiny", 3)


def test_weights_are_bfloat16_and_trained_ones_float32(made):
    llava = load_file(made / "llava" / "model.safetensors")
    assert {value.dtype for value in llava.values()} == {torch.bfloat16}
    assert llava["model.embed_tokens.weight"].shape == (1700, 32)
    trained = torch.load(made / "pytorch_model.bin")
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert any(".lora_A." in name for name in trained)


def test_the_full_scale_is_the_7b_model():
    llama, clip, sam = full_scale.SCALES["full"]
    shape = model_config(
        TrainConfig(version="llava-7b", vision_tower="clip-vit-large-patch14", vision_pretrained="")
    )
    text, vision = shape.vlm_config.text_config, shape.vlm_config.vision_config
    for name, value in llama.items():
        assert name == "vocab_size" or getattr(text, name) == value
    for name, value in clip.items():
        assert getattr(vision, name) == value
    assert SamSettings(**sam) == shape.sam_settings


def test_peak_is_what_the_kernel_counted():
    steps: list = []
    held = full_scale.measured(steps, "hold", lambda: torch.ones(50_000_000))
    assert steps[0]["peak_gigabytes"] > 0.2  # 200 MB are in it
    del held
