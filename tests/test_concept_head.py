"""The scripts with a concept head: training with a cache, merging, chat's instances, AP; and its recipe."""

from __future__ import annotations

import json

import pytest
import yaml
from pycocotools import mask as coco_mask

from model.decoders.concept_settings import ConceptSettings
from tests.commands import QUICK, REPOSITORY, losses_of, run
from tests.tiny_weights import random_sam3
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig
from utils.costs.model_sizes import model_config
from utils.toy.layouts.common import SceneSource
from utils.toy.layouts.own import write_own


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam3")
    random_sam3().save_pretrained(folder)
    return folder


def test_the_scripts_take_a_concept_head_from_training_to_instances(at_work, sam3, tmp_path, capsys):
    flags = (*QUICK, f"--vision_pretrained={sam3}", f"--log_base_dir={tmp_path}", "--epochs=1",
             f"--sam_cache={tmp_path / 'cache'}", "--dataset=sem_seg||refer_seg", "--sem_seg_data=ade20k",
             "--mask_head=concept")  # fmt: skip
    for name in ("filling", "reading"):
        assert run("train_ds", *flags, f"--exp_name={name}") == 0
    assert losses_of(tmp_path / "filling") == losses_of(tmp_path / "reading")
    assert any(line["presence"] > 0 for line in losses_of(tmp_path / "filling"))
    merged = tmp_path / "merged"
    weight = tmp_path / "filling" / "ckpt_model"
    assert run("merge_lora_weights_and_save_hf_model", "--weight", weight, "--save_path", merged) == 0
    assert "SAM 3's concept head, 56 px" in (merged / "README.md").read_text()
    image = min((at_work / "dataset/ade20k/images/validation").iterdir())
    asked = (
        "--version",
        merged,
        "--image",
        image,
        "--classes=dog, tree",
        "--vis_save_path",
        tmp_path / "out",
    )
    capsys.readouterr()
    assert run("chat", *asked, "--presence_threshold=0", "--json", "--instances") == 0
    told = json.loads(capsys.readouterr().out)
    assert all(one["present"] for one in told["classes"])
    for mask in told["masks"]:  # random queries may find nothing; what they find is whole
        assert coco_mask.area(mask["rle"]) == mask["area"] > 0
    write_own(tmp_path, SceneSource(seed=0, num_train=1, num_val=2))
    data = f"own_coco:{tmp_path / 'own/things'}|exhaustive=true"
    report = tmp_path / "report"
    assert run("test_sem", "--version", merged, "--val_dataset_list", data, "--presence_threshold=0",
               "--report_dir", report, "--max_samples=1", "--precision=fp32") == 0  # fmt: skip
    found = json.loads((report / "report.json").read_text())
    assert 0 <= found["instances"]["ap"] <= found["instances"]["ap50"] <= 1
    assert any("1 of 2" in line for line in (report / "report.md").read_text().splitlines())
    warm = [flag for flag in flags if not flag.startswith(("--version", "--vision_"))]
    assert run("train_ds", *warm, f"--version={merged}", "--exp_name=warm") == 0
    capsys.readouterr()
    other = [flag for flag in warm if not flag.startswith("--mask_head")]
    assert run("train_ds", *other, f"--version={merged}", "--mask_head=sam", "--exp_name=other") == 2
    assert "has SAM 3's concept head; leave --mask_head out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--mask_head=concept"], "has SAM; take a SAM 3 with its detector"),
        (["--mask_head=query"], "--mask_head: invalid choice: 'query'"),
        (
            ["--mask_head=concept", "--spatial_prompt"],
            "--spatial_prompt does not go with --mask_head concept",
        ),
        (["--presence_loss_weight=-1"], "--presence_loss_weight"),
    ],
)
def test_what_does_not_go_together_is_one_line(at_work, tmp_path, capsys, changes, message):
    assert run("train_ds", *QUICK, f"--log_base_dir={tmp_path}", *changes) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_the_recipe_with_a_concept_head_differs_in_the_mask_decoder_alone():
    path = REPOSITORY / "configs" / "lasagna_7b_concept.yaml"
    recipes = [
        yaml.safe_load((path.with_name("lasagna_7b.yaml")).read_text()),
        yaml.safe_load(path.read_text()),
    ]
    differing = {name for name in recipes[0] | recipes[1] if recipes[0].get(name) != recipes[1].get(name)}
    assert differing == {"vision_pretrained", "exp_name", "mask_head", "presence_loss_weight"}
    config = parse_config(TrainConfig, ["--config", str(path)])
    assert model_config(config).sam_settings == ConceptSettings()
    assert model_config(config).mask_head == "concept"
