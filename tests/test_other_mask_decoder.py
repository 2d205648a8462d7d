"""The scripts with SAM 2: training with a cache, merging, a warm start, chat, evaluation; and its recipe."""

from __future__ import annotations

import yaml

from model.checkpoints.layouts.sam2 import published
from model.decoders.sam2 import KINDS
from tests.commands import QUICK, REPOSITORY, losses_of, run
from tests.tiny_weights import SAM2, random_decoder
from utils.common.command_line import parse_config
from utils.config.training import TrainConfig
from utils.costs.model_sizes import model_config


def test_the_scripts_take_sam_2_from_training_to_an_answer(at_work, tmp_path, capsys):
    library = KINDS["sam2"].model(SAM2.config)
    library.load_state_dict(random_decoder(SAM2).state_dict())
    library.save_pretrained(tmp_path / "sam2")
    flags = (*QUICK, f"--vision_pretrained={tmp_path / 'sam2'}", f"--log_base_dir={tmp_path}", "--epochs=1",
             f"--sam_cache={tmp_path / 'cache'}", "--dataset=refer_seg")  # fmt: skip
    for name in ("filling", "reading"):
        assert run("train_ds", *flags, f"--exp_name={name}") == 0
    assert losses_of(tmp_path / "filling") == losses_of(tmp_path / "reading")
    merged = tmp_path / "merged"
    weight = tmp_path / "filling" / "ckpt_model"
    assert run("merge_lora_weights_and_save_hf_model", "--weight", weight, "--save_path", merged) == 0
    assert "SAM 2, 64 px" in (merged / "README.md").read_text()
    capsys.readouterr()
    released = ("--layout=lisa", "--save_path", tmp_path / "released")
    assert run("merge_lora_weights_and_save_hf_model", "--weight", weight, *released) == 2
    assert "the released layout holds a SAM; this model has SAM 2" in capsys.readouterr().err
    image = min((at_work / "dataset/ade20k/images/validation").iterdir())
    capsys.readouterr()
    assert (
        run("chat", "--version", merged, "--image", image, "--classes=dog, tree", "--vis_save_path", tmp_path)
        == 0
    )
    assert "dog" in capsys.readouterr().out
    warm = [flag for flag in flags if not flag.startswith(("--version", "--vision_"))]
    assert run("train_ds", *warm, f"--version={merged}", "--exp_name=warm") == 0


def test_the_recipe_with_sam_2_differs_in_the_mask_decoder_alone():
    recipes = [
        yaml.safe_load((REPOSITORY / "configs" / name).read_text())
        for name in ("lasagna_7b.yaml", "lasagna_7b_sam2.yaml")
    ]
    differing = {name for name in recipes[0] | recipes[1] if recipes[0].get(name) != recipes[1].get(name)}
    assert differing == {"vision_pretrained", "exp_name"}
    config = parse_config(TrainConfig, ["--config", str(REPOSITORY / "configs" / "lasagna_7b_sam2.yaml")])
    assert model_config(config).sam_settings == published("large")
