"""Export to the layout that the authors of LaSagnA and LISA release, and the way back."""

import json
import shutil

import pytest
import torch
from transformers import CLIPVisionModel, GenerationConfig

from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from model.checkpoints.weights import read_folder
from model.lora import add_lora
from model.text.tokenizer_files import load_tokenizer
from tests.tiny_weights import edit_json, noise_image

ROW_OF_IMAGE = ("vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight")


def assert_same_model(model, expected):
    """Equal but for the row of <image>, which nobody reads and the layout does not have."""
    own, other = model.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    for name, value in other.items():
        rows = slice(None, -1) if name in ROW_OF_IMAGE else slice(None)
        assert torch.equal(own[name][rows], value[rows]), name
    assert model.config.sequence_format == expected.config.sequence_format
    assert model.config.prompt == expected.config.prompt
    assert model.processor.token_ids == expected.processor.token_ids
    text = "a dog [SEG], tree <ins> and  x</s>"
    assert model.processor.tokenizer(text).input_ids == expected.processor.tokenizer(text).input_ids


@pytest.mark.parametrize("format", ["release", "lisa", "paper"])
@pytest.mark.parametrize("shard_size", [5_000_000_000, 40_000])
def test_a_model_of_ours_comes_back_from_the_released_layout(tiny_folders, tmp_path, format, shard_size):
    model, _ = load_model(tiny_folders.llava, dtype=torch.float32, format=format, **tiny_folders.parts)
    write_released(model, tmp_path / "out", shard_size=shard_size)
    assert len(list((tmp_path / "out").glob("*.bin"))) > 1 or shard_size > 40_000
    again, _ = load_model(tmp_path / "out")
    assert_same_model(again, model)
    before, after = (
        model.segment(noise_image(), ["dog", "tree"]),
        again.segment(noise_image(), ["dog", "tree"]),
    )
    assert before.present == after.present
    torch.testing.assert_close(after.masks, before.masks, rtol=0, atol=0)


def test_the_released_model_comes_back_key_by_key(golden, tmp_path):
    original = golden / "checkpoints" / "lasagna-tiny"
    model, _ = load_model(original, vision_tower=str(golden / "checkpoints" / "clip-vit-tiny-patch14"))
    model.save_pretrained(tmp_path / "ours")
    model, _ = load_model(tmp_path / "ours")
    write_released(model, tmp_path / "released")
    written, expected = read_folder(tmp_path / "released"), read_folder(original)
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        assert written[name].dtype == value.dtype, name
        assert torch.equal(written[name], value), name
    assert (tmp_path / "released" / "tokenizer.model").read_bytes() == (
        original / "tokenizer.model"
    ).read_bytes()
    for name in ("added_tokens.json", "config.json"):
        ours, theirs = (
            json.loads((folder / name).read_text()) for folder in (tmp_path / "released", original)
        )
        for key in theirs.keys() & ours.keys() - {"mm_vision_tower", "vision_tower"}:
            assert ours[key] == theirs[key], key
    # Somebody else's tools do not know our own folder inside.
    tokens = [load_tokenizer(folder) for folder in (tmp_path / "released", original)]
    for case in json.loads((golden / "tokenization.json").read_text()):
        assert tokens[0](case["prompt"]).input_ids == tokens[1](case["prompt"]).input_ids


def test_a_folder_for_other_tools_alone_is_read_too(tiny_folders, tmp_path):
    """Without lasagna/ and vision_tower/, as the authors' own script writes it."""
    model, _ = load_model(tiny_folders.llava, dtype=torch.float32, format="release", **tiny_folders.parts)
    write_released(model, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "lasagna")
    shutil.rmtree(tmp_path / "out" / "vision_tower")
    again, _ = load_model(tmp_path / "out", vision_tower=str(tiny_folders.clip))
    assert_same_model(again, model)


def test_the_tower_has_the_names_that_older_transformers_read_and_newer_ones_and_we_read_it_too(
    tiny_model, tmp_path
):
    write_released(tiny_model, tmp_path / "out")
    names = read_folder(tmp_path / "out" / "vision_tower").keys()
    assert all(name.startswith("vision_model.") for name in names)
    tower = tiny_model.vlm.model.vision_tower
    assert len(names) == len(tower.state_dict())
    stock, info = CLIPVisionModel.from_pretrained(tmp_path / "out" / "vision_tower", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    again, _ = load_model(tmp_path / "out")
    for name, value in tower.state_dict().items():
        assert torch.equal(stock.state_dict()[name], value), name
        assert torch.equal(again.vlm.model.vision_tower.state_dict()[name], value), name


def test_the_released_evaluation_generates_without_a_cache(tiny_model, tmp_path):
    """It reads the hidden states of the whole answer from the last step, which with a cache holds one token."""
    write_released(tiny_model, tmp_path / "out")
    for name in ("generation_config.json", "config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["use_cache"] is False, name
    assert GenerationConfig.from_pretrained(tmp_path / "out").use_cache is False


def test_a_language_model_with_scaled_positions_keeps_its_settings(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders.llava, tmp_path / "copy")
    edit_json(folder / "config.json", rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=50000.0)
    model, _ = load_model(folder, dtype=torch.float32, **tiny_folders.parts)
    write_released(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert config["rope_theta"] == 50000.0
    again, _ = load_model(tmp_path / "out")
    buffers = dict(again.named_buffers())
    for name, value in model.named_buffers():
        assert torch.equal(buffers[name], value), name


def test_adapters_are_merged_before_an_export(tiny_model, tmp_path):
    tiny_model.vlm = add_lora(tiny_model.vlm)
    with pytest.raises(ValueError, match="merge"):
        write_released(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
