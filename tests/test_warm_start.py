"""Training goes on from any model that has a mask decoder: --version FOLDER of ours, released LaSagnA, LISA."""

import math
import shutil

import pytest
import torch

import train_ds
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from tests.commands import SMALL_RUN, losses_of, run
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig

PARTS = {"vision_tower": "base/clip", "sam": "base/sam.pth"}


def trained_parts(model):
    """Projection and mask decoder, by name."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("seg_projector.", "sam.mask_decoder."))
    }


def write(layout, folder):
    """A folder whose projection and mask decoder are those of nobody else; returns them."""
    format = {"ours": "paper", "released": "release", "LISA": "lisa"}[layout]
    model, _ = load_model("base/llava", dtype=torch.float32, format=format, seed=5, **PARTS)
    torch.manual_seed(3)
    with torch.no_grad():
        for value in trained_parts(model).values():
            value.add_(0.01 * torch.randn_like(value))
    if layout == "ours":
        model.save_pretrained(folder)
    else:
        write_released(model, folder)
        # As the authors publish it: nothing of ours inside, and the tower elsewhere.
        shutil.rmtree(folder / "lasagna")
        shutil.rmtree(folder / "vision_tower")
    return format, {name: value.clone() for name, value in trained_parts(model).items()}


@pytest.mark.parametrize("layout", ["ours", "released", "LISA"])
def test_training_starts_with_the_loaded_mask_decoder_and_projection(layout, at_work, tmp_path, caplog):
    format, expected = write(layout, tmp_path / "model")
    flags = [*SMALL_RUN, "--version", str(tmp_path / "model"), "--dataset_dir=./dataset", "--format", format,
             "--no_eval", "--precision=fp32", "--batch_size=1", "--num_all_classes=8", "--epochs=1",
             "--steps_per_epoch=3", "--dataset=refer_seg",  # with masks in every step, of which two warm up
             f"--log_base_dir={tmp_path}", "--exp_name=warm"]  # fmt: skip
    if layout != "ours":
        flags += ["--vision_tower", PARTS["vision_tower"]]
    with caplog.at_level("INFO", logger="model"):
        start, _ = train_ds.build_model(parse_config(TrainConfig, flags))
    assert "projection and mask decoder: trained, from the folder" in caplog.messages
    found = trained_parts(start)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    assert run("train_ds", *flags) == 0
    losses = losses_of(tmp_path / "warm")
    assert [line["step"] for line in losses] == [1, 2, 3]
    assert all(math.isfinite(line["total"]) for line in losses)
    # And what it leaves can be loaded, on top of what it started from.
    model, _ = load_model(tmp_path / "warm")
    moved = trained_parts(model)
    assert any(not torch.equal(moved[name], value) for name, value in expected.items())
    for name, value in expected.items():
        torch.testing.assert_close(moved[name], value, rtol=0, atol=0.01)
