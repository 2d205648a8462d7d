"""What people pass by mistake: each is refused, and the message says what it is and which flag it belongs to."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, LlamaConfig

from model.checkpoints.checkpoint import open_trained
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from model.checkpoints.weights import read_folder
from model.decoders.sam import SamSettings, build_sam
from model.errors import MisfitError
from tests.tiny_weights import HIDDEN_DIM, SAM, edit_json, save_in_shards, tiny_tower


@pytest.fixture
def ours(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def llava(tiny_folders, tmp_path):
    """A copy of the original LLaVA that may be changed."""
    return shutil.copytree(tiny_folders.llava, tmp_path / "llava")


def load(folder, folders, **kwargs):
    return load_model(folder, dtype=torch.float32, **{**folders.parts, **kwargs})


def edit_weights(folder, change):
    """Changes the weights of a folder of ours in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path, share=0.6):
    """Ends a file early, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# ------------------------------------------------------------------------ a folder of the wrong kind


def test_the_wrong_thing_as_version(tiny_folders, tmp_path):
    CLIPConfig().save_pretrained(tmp_path / "whole_clip")
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "vicuna")
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (tiny_folders.clip, "is a CLIP tower; pass it as --vision_tower"),
        (tmp_path / "whole_clip", "is a CLIP; pass it as --vision_tower"),
        (tiny_folders.sam, "is a mask decoder; pass it as --vision_pretrained"),
        (tmp_path / "vicuna", "a language model without a vision tower"),
        (tmp_path / "empty", "no config.json"),
        (tmp_path / "nowhere", "--version .*nowhere is not there"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(wrong, tiny_folders)


def test_the_wrong_thing_as_tower_or_sam(tiny_folders, ours, tmp_path):
    for change, message in (
        ({"vision_tower": str(tiny_folders.llava)}, "--vision_tower .* is not a CLIP.*'llava'"),
        ({"vision_tower": str(ours)}, "--vision_tower .* is not a CLIP.*'lasagna'"),
        ({"vision_tower": str(tiny_folders.sam)}, "--vision_tower .*sam.pth is a file"),
        ({"sam": str(tiny_folders.clip)}, "--vision_pretrained .* is a folder"),
        (
            {"sam": str(tiny_folders.llava / "pytorch_model.bin")},
            "--vision_pretrained .* not a SAM",
        ),
        (
            {"sam": str(tiny_folders.llava / "tokenizer.model")},
            "tokenizer.model is not a readable",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(tiny_folders.llava, tiny_folders, **change)


def test_the_wrong_thing_as_weight(tiny_folders, ours, tmp_path):
    (tmp_path / "mp_rank_00_model_states.pt").touch()
    for wrong, message in (
        (ours, "--weight .* is a whole model"),
        (tiny_folders.llava, "--weight .* is a whole model"),
        (tmp_path / "mp_rank_00_model_states.pt", "one file of a DeepSpeed checkpoint; pass its folder"),
        (tmp_path / "nothing", "--weight .* does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_trained(wrong)


# --------------------------------------------------------------------------------- files that are broken


def test_a_truncated_shard_is_named(tiny_folders, llava, ours, tmp_path):
    weights = {name: v for name, v in read_folder(tiny_folders.llava).items() if "inv_freq" not in name}
    (llava / "pytorch_model.bin").unlink()
    save_in_shards(llava, weights, 3, safetensors=False)
    cut(llava / "pytorch_model-00002-of-00003.bin")
    with pytest.raises(ValueError, match=r"00002-of-00003\.bin is cut off"):
        load(llava, tiny_folders)
    cut(ours / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off"):
        load_model(ours)
    cut(shutil.copy(tiny_folders.sam, tmp_path / "s.pth"))
    with pytest.raises(ValueError, match=r"s\.pth is cut off"):
        load(tiny_folders.llava, tiny_folders, sam=str(tmp_path / "s.pth"))


class Payload:
    """What a malicious file would run when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["llava", "sam", "clip", "hugging_face", "adapter", "weight"])
def test_a_file_that_holds_code_is_refused_and_not_run(tiny_folders, tiny_model, llava, tmp_path, kind):
    code = {"model.norm.weight": torch.ones(HIDDEN_DIM), "run": Payload(tmp_path / "it_ran")}
    told, folder = {}, llava
    if kind == "llava":
        torch.save(code, llava / "pytorch_model.bin")
    elif kind == "sam":
        torch.save(code, tmp_path / "sam.pth")
        told = {"sam": str(tmp_path / "sam.pth")}
    elif kind == "clip":
        clip = shutil.copytree(tiny_folders.clip, tmp_path / "clip")
        (clip / "model.safetensors").unlink()
        torch.save(code, clip / "pytorch_model.bin")
        told = {"vision_tower": str(clip)}
    elif kind == "hugging_face":
        folder = tmp_path / "hf"
        tiny_model.config.vlm_config.save_pretrained(folder)
        torch.save(code, folder / "pytorch_model.bin")
    elif kind == "adapter":
        folder = tmp_path / "adapter"
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(llava)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        torch.save(code, folder / "adapter_model.bin")
    else:
        folder = tmp_path / "weight.bin"
        torch.save(code, folder)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(folder, tiny_folders, **told)
    assert not (tmp_path / "it_ran").exists()


# --------------------------------------------------------------------- parts that are not of one model


def test_what_does_not_fit_stands_in_a_table(ours):
    def change(weights):
        del weights["seg_projector.2.weight"]
        weights["sam.extra"] = torch.zeros(3)
        weights["vlm.lm_head.weight"] = weights["vlm.lm_head.weight"][:, :5].contiguous()

    num_rows = load_model(ours)[0].config.image_token_id + 1
    edit_weights(ours, change)
    with pytest.raises(MisfitError) as error:
        load_model(ours)
    lines = [line.split() for line in str(error.value).splitlines()]
    assert "1 missing, 1 unexpected, 1 of another shape" in str(error.value)
    assert ["name", "expected", "found"] in lines
    rows = {line[0]: line[1:] for line in lines[2:5]}
    assert rows["seg_projector.2.weight"][-1] == "-"
    assert rows["sam.extra"][0] == "-"
    assert "".join(rows["vlm.lm_head.weight"]).endswith(f",{HIDDEN_DIM})({num_rows},5)")
    assert "--version" in lines[-1]


def test_another_sam_than_the_config_says(ours):
    """ViT-B weights where the config says ViT-H, at this scale: another width and depth."""
    other = SamSettings(
        **{**SAM.to_dict(), "encoder_dim": 24, "encoder_depth": 1, "encoder_global_blocks": ()}
    )

    def change(weights):
        for name in [name for name in weights if name.startswith("sam.image_encoder.")]:
            del weights[name]
        for name, value in build_sam(other).state_dict().items():
            if name.startswith("image_encoder."):
                weights["sam." + name] = value

    edit_weights(ours, change)
    with pytest.raises(MisfitError, match=r"sam\.image_encoder[\s\S]*sam_config"):
        load_model(ours)


def test_another_tower_than_the_llava_was_trained_with(tiny_folders, llava, tmp_path):
    tiny_tower(hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path / "wide")
    with pytest.raises(MisfitError) as error:
        load(llava, tiny_folders, vision_tower=str(tmp_path / "wide"))
    assert "multi_modal_projector" in str(error.value)
    assert "--vision_tower" in str(error.value)


def test_a_tokenizer_without_seg_is_refused_for_trained_weights(tiny_folders, tmp_path):
    model, _ = load(tiny_folders.llava, tiny_folders, format="lisa")
    write_released(model, tmp_path / "lisa")
    shutil.rmtree(tmp_path / "lisa" / "lasagna")
    added = json.loads((tmp_path / "lisa" / "added_tokens.json").read_text())
    (tmp_path / "lisa" / "added_tokens.json").unlink()
    assert "[SEG]" in added
    with pytest.raises(ValueError, match=r"no \[SEG\].*added_tokens\.json"):
        load_model(tmp_path / "lisa", dtype=torch.float32)


def test_a_tokenizer_of_another_model_is_refused(tiny_folders, llava):
    weights = read_folder(tiny_folders.llava)  # not of the copy: its file is mapped, and rewritten
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:650].clone()
    torch.save(weights, llava / "pytorch_model.bin")
    with pytest.raises(ValueError, match="700 tokens but its weights have 650 rows"):
        load(llava, tiny_folders)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"seg_token_id": 5}, r"seg_token_id of config\.json is 5"),
        ("config.json", {"image_token_id": 9}, r"image_token_id of config\.json is 9"),
        ("processor_config.json", {"num_image_tokens": 9}, "num_image_tokens .* is 9, but .* is 4"),
        ("processor_config.json", {"sam_image_size": 1024}, "sam_image_size .* is 1024, but .* is 64"),
        (
            "preprocessor_config.json",
            {"crop_size": {"height": 42, "width": 42}},
            "CLIP's image size .* is 42",
        ),
    ],
)
def test_files_of_different_models_in_one_folder_are_found(ours, file, change, message):
    edit_json(ours / file, **change)
    with pytest.raises(ValueError, match=message):
        load_model(ours)


def test_a_tokenizer_with_a_token_less_is_found(ours, tmp_path):
    tokenizer = json.loads((ours / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "[SEG]"]
    (ours / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"\[SEG\]"):
        load_model(ours)


def test_quantised_loading_says_what_it_needs(ours, monkeypatch):
    for name, dtype, message in (
        ("2bit", torch.bfloat16, "unknown quantization '2bit'; known: 8bit, 4bit"),
        ("8bit", torch.float32, "--load_in_8bit computes in 16 bit; pass --precision"),
        ("4bit", torch.bfloat16, "--load_in_4bit needs a GPU"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(ours, quantization=name, dtype=dtype)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--load_in_8bit needs bitsandbytes: pip install bitsandbytes"):
        load_model(ours, quantization="8bit", dtype=torch.bfloat16)
