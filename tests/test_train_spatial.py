"""A run with a spatial prompt and a stretched image: train, merge, load, and start from it again."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.load import load_model
from tests.commands import QUICK, complaint, losses_of, run

SPATIAL = ("--spatial_prompt", "--num_latent_prompts=1", "--image_aspect_ratio=stretch")


@pytest.fixture(scope="module")
def spatial_run(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spatial")
    flags = [*QUICK, *SPATIAL, "--epochs=1", "--steps_per_epoch=3", "--dataset=refer_seg"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        assert run("train_ds", *flags, f"--log_base_dir={folder}", "--exp_name=a") == 0
    return folder


def test_the_maps_have_losses_and_the_gates_open(spatial_run, at_work):
    assert all(line["map_bce"] > 0 and line["map_dice"] > 0 for line in losses_of(spatial_run / "a"))
    model, processor = load_model(spatial_run / "a")
    assert model.spatial_prompt.gate.weight.abs().sum() > 0
    assert model.config.num_latent_prompts == 1
    assert model.config.image_aspect_ratio == processor.images.image_aspect_ratio == "stretch"


def test_the_merge_holds_what_was_trained(spatial_run, at_work, tmp_path, capsys):
    weight = ["--weight", spatial_run / "a" / "ckpt_model", "--save_path"]
    assert run("merge_lora_weights_and_save_hf_model", *weight, tmp_path / "merged") == 0
    merged, _ = load_model(tmp_path / "merged")
    direct, _ = load_model(spatial_run / "a")
    assert merged.config.image_aspect_ratio == "stretch"
    for name, value in direct.state_dict().items():
        assert torch.equal(merged.state_dict()[name], value), name
    capsys.readouterr()
    assert run("merge_lora_weights_and_save_hf_model", *weight, tmp_path / "lisa", "--layout=lisa") == 2
    complaint(capsys, "has no place for --spatial_prompt", "--layout lasagna")


def test_latent_prompts_without_a_spatial_prompt_are_refused(at_work, capsys):
    assert run("train_ds", *QUICK, "--num_latent_prompts=2") == 2
    complaint(capsys, "num_latent_prompts 2 needs --spatial_prompt")
