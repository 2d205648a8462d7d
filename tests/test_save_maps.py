"""--save_maps: where each [SEG] looks, in chat and evaluation, of a model with a spatial prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from model.checkpoints.load import load_model
from tests.commands import QUICK, complaint, run


@pytest.fixture(scope="module")
def spatial_folder(workspace, tmp_path_factory):
    """A merged model with a spatial prompt, which two steps have hardly changed, and an image beside it."""
    folder = tmp_path_factory.mktemp("maps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        flags = [*QUICK, "--spatial_prompt", "--epochs=1", f"--log_base_dir={folder}", "--exp_name=a"]
        assert run("train_ds", *flags) == 0
        weight = ["--weight", folder / "a" / "ckpt_model", "--save_path", folder / "merged"]
        assert run("merge_lora_weights_and_save_hf_model", *weight) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "street.png")
    return folder


def size_of(path) -> tuple[int, int]:
    return Image.open(path).size


def test_chat_writes_a_map_for_each_seg_named_like_its_mask(spatial_folder, tmp_path, capsys):
    flags = ["--version", spatial_folder / "merged", "--image", spatial_folder / "street.png",
             "--classes=sky, big dog", "--presence_threshold=0", "--vis_save_path", tmp_path]  # fmt: skip
    assert run("chat", *flags, "--save_maps") == 0
    assert "map 2, big dog: " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*_map_*")) == [
        "street_map_1_sky.png", "street_map_2_big_dog.png",
    ]  # fmt: skip
    assert size_of(tmp_path / "street_map_1_sky.png") == (100, 60)
    assert run("chat", *flags, "--save_maps", "--json", "--instances") == 0
    masks = json.loads(capsys.readouterr().out)["masks"]
    for mask in masks:  # the instances of a mask share its map
        assert mask["map"].endswith({"sky": "_map_1_sky.png", "big dog": "_map_2_big_dog.png"}[mask["label"]])


def test_images_without_ground_truth_get_maps(spatial_folder, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\ndog\n")
    flags = ["--version", spatial_folder / "merged", "--images", spatial_folder / "street.png",
             "--classes", tmp_path / "classes.txt", "--presence_threshold=0"]  # fmt: skip
    assert run("test_sem", *flags, "--save_predictions", tmp_path / "out", "--save_maps") == 0
    [entry] = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    maps = [found["map"] for found in entry["present"]]
    assert sorted(maps) == ["maps/street_map_1_sky.png", "maps/street_map_2_dog.png"]
    assert all(size_of(tmp_path / "out" / name) == (100, 60) for name in maps)
    assert run("test_sem", *flags, "--save_predictions", tmp_path / "plain") == 0
    assert not (tmp_path / "plain" / "maps").exists()


def test_an_evaluation_writes_maps_of_classes_and_questions(spatial_folder, at_work, tmp_path):
    flags = ["--version", spatial_folder / "merged", "--dataset_dir=dataset", "--max_samples=1",
             "--val_dataset_list=ade20k,ReasonSeg|val", "--save_predictions", tmp_path]  # fmt: skip
    assert run("test_sem", *flags, "--save_maps", "--presence_threshold=0", "--classes_per_query=75") == 0
    found = sorted((tmp_path / "ade20k_maps").iterdir())
    assert len(found) == 150  # with this threshold every class is present
    assert any(path.name.endswith("_map_1_wall.png") for path in found)
    [entry] = json.loads((tmp_path / "ReasonSeg_val.json").read_text())
    assert all((tmp_path / name).is_file() and "_0_map_" in name for name in entry["maps"])


def test_a_model_without_a_spatial_prompt_is_one_line_before_its_weights_are_read(
    merged_model, tmp_path, capsys, monkeypatch
):
    for script in ("chat", "test_sem"):
        monkeypatch.setattr(f"{script}.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    image = ["--image", tmp_path / "a.png", "--classes=sky", "--vis_save_path", tmp_path / "out"]
    assert run("chat", "--version", merged_model, *image, "--save_maps") == 2
    complaint(capsys, "--save_maps needs a model that was trained with --spatial_prompt", str(merged_model))
    flags = ["--version", merged_model, "--images", tmp_path / "a.png", "--classes=ade20k", "--save_maps"]
    assert run("test_sem", *flags, "--save_predictions", tmp_path / "out") == 2
    complaint(capsys, "--save_maps needs a model that was trained with --spatial_prompt")


def test_maps_need_a_folder_and_answers_of_the_model(at_work, capsys):
    flags = ["--version=any", "--dataset_dir=dataset", "--val_dataset_list=ade20k", "--save_maps"]
    assert run("test_sem", *flags) == 2
    complaint(capsys, "--save_maps needs --save_predictions")
    assert run("test_sem", *flags, "--save_predictions=out", "--teacher_forced") == 2
    complaint(capsys, "leave --teacher_forced out")


def test_a_map_lies_where_the_model_looked(spatial_folder):
    """A conversation's map at the size of the image is that of the grid; what the crop hides is not coloured."""
    model, _ = load_model(spatial_folder / "merged")
    image = np.zeros((40, 80, 3), np.uint8)  # LLaVA v1 sees the middle: columns 20 to 60
    answer = model.segment(image, ["dog"], presence_threshold=0.0)
    assert answer.maps is not None
    values = answer.maps.probabilities((40, 80))[0]
    assert values[:, :20].isnan().all()
    assert values[:, 60:].isnan().all()
    seen = values[:, 20:60]
    logits = answer.maps.logits[0].sigmoid()
    assert logits.min() - 1e-6 <= seen.min() <= seen.max() <= logits.max() + 1e-6
    again = model.rethreshold(answer, model.encode(image), 1.0)
    assert len(again.maps.logits) == len(again.masks)
