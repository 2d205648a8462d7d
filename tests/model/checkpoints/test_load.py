import importlib.util
import logging
import shutil

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model.checkpoints.finite import is_finite
from model.checkpoints.load import choose_attention, load_model
from model.checkpoints.weights import read_folder
from model.config import LasagnaConfig
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from tests.tiny_weights import HIDDEN_DIM, edit_json, noise_image, save_in_shards


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def load(folder, folders, **kwargs):
    return load_model(folder, dtype=torch.float32, **{**folders.parts, **kwargs})


def states_of(model):
    image = noise_image()
    batch = model.processor.collate([image], [Conversation.of("What is it?", "A dog.")], [0])
    with torch.no_grad():
        return model(**batch.fields()).last_hidden_state


def test_an_original_llava_computes_what_its_parts_compute(tiny_folders, tiny_model):
    weights = read_folder(tiny_folders.llava)
    tower = CLIPVisionModel.from_pretrained(tiny_folders.clip)
    image = torch.from_numpy(tiny_model.processor.images.clip_image(noise_image())).unsqueeze(0)
    clip = tiny_model.processor.images.clip
    pixels = torch.from_numpy(clip(noise_image(), return_tensors="np")["pixel_values"])
    with torch.no_grad():
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = patches @ weights["model.mm_projector.weight"].T + weights["model.mm_projector.bias"]
        torch.testing.assert_close(
            torch.stack(tiny_model.image_features({"clip_images": image}).tokens),
            expected,
            rtol=1e-4,
            atol=1e-5,
        )
    language = tiny_model.vlm.model.language_model.state_dict()
    for name, value in weights.items():
        own = name.removeprefix("model.")
        if own in language and own != "embed_tokens.weight":
            assert torch.equal(language[own], value), name


def test_known_rows_of_the_vocabulary_stay_and_new_ones_are_apart(tiny_folders, tiny_model):
    weights = read_folder(tiny_folders.llava)
    for own, theirs in (
        (tiny_model.get_input_embeddings().weight, weights["model.embed_tokens.weight"]),
        (tiny_model.get_output_embeddings().weight, weights["lm_head.weight"]),
    ):
        assert torch.equal(own[: len(theirs)], theirs)
        new = own[len(theirs) :]
        assert len(new) == len(tiny_model.processor.tokenizer) - len(theirs) > 0
        assert torch.pdist(new).min() > 0
        assert (new - theirs.mean(0)).abs().max() < theirs.abs().max()


def test_loading_twice_gives_the_same_model(tiny_folders, tiny_model):
    again, _ = load(tiny_folders.llava, tiny_folders)
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("safetensors", [False, True])
def test_shards_are_read_with_their_index(tiny_folders, tiny_model, tmp_path, safetensors):
    folder = copy_of(tiny_folders.llava, tmp_path)
    (folder / "pytorch_model.bin").unlink()
    weights = {k: v for k, v in read_folder(tiny_folders.llava).items() if "inv_freq" not in k}
    save_in_shards(folder, weights, 3, safetensors=safetensors)
    model, _ = load(folder, tiny_folders)
    torch.testing.assert_close(states_of(model), states_of(tiny_model))
    next(folder.glob("*-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match="00002"):
        load(folder, tiny_folders)


def test_a_two_layer_projector_is_read(tiny_folders, tmp_path):
    folder = copy_of(tiny_folders.llava, tmp_path)
    weights = read_folder(tiny_folders.llava)
    first = {kind: weights.pop(f"model.mm_projector.{kind}") for kind in ("weight", "bias")}
    second = {"weight": torch.randn(HIDDEN_DIM, HIDDEN_DIM), "bias": torch.randn(HIDDEN_DIM)}
    for index, layer in ((0, first), (2, second)):
        weights.update({f"model.mm_projector.{index}.{kind}": value for kind, value in layer.items()})
    torch.save(weights, folder / "pytorch_model.bin")
    edit_json(folder / "config.json", mm_projector_type="mlp2x_gelu", image_aspect_ratio="pad")
    model, processor = load(folder, tiny_folders)
    patches = torch.randn(1, 4, 16)
    hidden = torch.nn.functional.gelu(patches @ first["weight"].T + first["bias"])
    expected = hidden @ second["weight"].T + second["bias"]
    torch.testing.assert_close(model.vlm.model.multi_modal_projector(patches), expected)
    assert processor.images.image_aspect_ratio == "pad"


def test_a_hugging_face_llava_is_read(tiny_folders, tiny_model, tmp_path):
    folder = tmp_path / "hugging_face"
    stock = LlavaForConditionalGeneration(tiny_model.config.vlm_config)
    stock.load_state_dict(tiny_model.vlm.state_dict())
    stock.save_pretrained(folder)
    tiny_model.processor.tokenizer.save_pretrained(folder)
    model, _ = load(folder, tiny_folders, vision_tower=None)
    torch.testing.assert_close(states_of(model), states_of(tiny_model))
    model.save_pretrained(tmp_path / "ours")
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()  # a folder of this machine


def test_our_folder_needs_nothing_else_and_gives_the_same_answers(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "ours")
    for reloaded in (
        LasagnaForConditionalGeneration.from_pretrained(tmp_path / "ours"),
        load_model(tmp_path / "ours")[0],
    ):
        own, other = tiny_model.state_dict(), reloaded.state_dict()
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
        # Buffers that no file holds are the ones that loading has lost before.
        buffers = dict(reloaded.named_buffers())
        for name, value in tiny_model.named_buffers():
            assert torch.equal(buffers[name], value), name
        classes = ["dog", "tree", "sky"]
        before, after = tiny_model.segment(noise_image(), classes), reloaded.segment(noise_image(), classes)
        assert before.present == after.present
        torch.testing.assert_close(after.masks, before.masks)
        assert reloaded.processor.token_ids == tiny_model.processor.token_ids


def test_dtype_is_the_stored_one_unless_asked(tiny_model, tmp_path):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path / "ours")
    assert {p.dtype for p in load_model(tmp_path / "ours")[0].parameters()} == {torch.bfloat16}
    model, _ = load_model(tmp_path / "ours", dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_buffers_stay_exact_in_bfloat16(tiny_model, tmp_path):
    exact = {name: value.clone() for name, value in tiny_model.named_buffers()}
    tiny_model.bfloat16()
    tiny_model.save_pretrained(tmp_path / "ours")
    for model in (tiny_model, load_model(tmp_path / "ours", dtype=torch.bfloat16)[0]):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        buffers = dict(model.named_buffers())
        for name, value in exact.items():
            assert buffers[name].dtype == value.dtype, name
            assert torch.equal(buffers[name], value), name


@pytest.mark.parametrize("change", ["remove", "add", "reshape"])
def test_weights_that_do_not_fit_are_named(tiny_folders, tmp_path, change):
    folder = copy_of(tiny_folders.llava, tmp_path)
    weights = read_folder(tiny_folders.llava)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "remove":
        del weights[name]
    elif change == "add":
        weights["model.image_newline"] = torch.zeros(HIDDEN_DIM)
        name = "model.image_newline"
    else:
        weights[name] = weights[name][:5]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, RuntimeError), match=name.removeprefix("model.")):
        load(folder, tiny_folders)


def test_our_folder_with_a_missing_weight_is_refused(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_model.save_pretrained(tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    del weights["seg_projector.2.weight"]
    save_file(weights, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"seg_projector\.2\.weight"):
        load_model(tmp_path / "ours")


def test_errors_say_which_flag_to_change(tiny_folders, tmp_path):
    for change, message in (
        ({"sam": None}, "--vision_pretrained"),
        ({"sam": str(tmp_path / "no.pth")}, r"no\.pth"),
        ({"sam": str(tiny_folders.llava / "pytorch_model.bin")}, "not a SAM"),
        ({"vision_tower": None}, "--vision_tower"),
        ({"vision_tower": str(tmp_path / "no_clip")}, "no_clip"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            load(tiny_folders.llava, tiny_folders, **change)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert"):
        load_model(tmp_path)


def test_a_model_is_not_spoken_to_in_another_format_than_it_learned(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="paper"):
        load_model(tmp_path / "ours", format="release")
    with pytest.raises(ValueError, match="llava_v1"):
        load_model(tmp_path / "ours", prompt="llava_llama_2")


def test_a_checkpoint_that_holds_code_is_not_run(tiny_folders, tmp_path):
    folder = copy_of(tiny_folders.llava, tmp_path)
    torch.save({"model.norm.weight": print}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(folder, tiny_folders)


@pytest.mark.parametrize("name", ["release", "lisa"])
def test_other_formats_get_their_tokens(tiny_folders, name):
    model, processor = load(tiny_folders.llava, tiny_folders, format=name)
    assert processor.format.name == name
    assert model.config.neg_token_id == processor.token_ids.neg
    found = model.segment(noise_image(), ["dog", "tree"])
    assert found.names == ("dog", "tree")
    assert len(found.masks) == sum(found.present)


def test_a_whole_clip_serves_as_tower(tiny_folders, tiny_model, tmp_path):
    """The CLIP that people download has a text side too."""
    tower = CLIPVisionModel.from_pretrained(tiny_folders.clip)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(vision_config=tower.config.to_dict(), text_config=text, projection_dim=8))
    clip.vision_model.load_state_dict(tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    model, _ = load(tiny_folders.llava, tiny_folders, vision_tower=str(tmp_path / "clip"))
    torch.testing.assert_close(states_of(model), states_of(tiny_model))


def test_a_tower_that_the_config_names_is_found_beside_the_model(tiny_folders, tiny_model, tmp_path):
    folder = copy_of(tiny_folders.llava, tmp_path)
    edit_json(folder / "config.json", mm_vision_tower="its_clip")
    shutil.copytree(tiny_folders.clip, tmp_path / "its_clip")
    model, _ = load(folder, tiny_folders, vision_tower=None)
    torch.testing.assert_close(states_of(model), states_of(tiny_model))


@pytest.mark.parametrize("read", [load_model, LasagnaProcessor.from_pretrained])
def test_a_folder_of_ours_is_read_without_a_remark_whoever_was_imported_before(
    tiny_model, tmp_path, monkeypatch, caplog, capfd, read
):
    """A stranger's script that wants the processor alone has not registered our configuration."""
    tiny_model.save_pretrained(tmp_path)
    if read is not load_model:
        monkeypatch.delitem(CONFIG_MAPPING._extra_content, "lasagna")
    capfd.readouterr()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        read(tmp_path)
    assert caplog.text == ""
    assert "model of type" not in capfd.readouterr().err


def test_the_auto_classes_know_a_folder_of_ours(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LasagnaConfig)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path), LasagnaForConditionalGeneration)


def test_auto_is_the_attention_that_packs_also_where_flash_attention_is_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert choose_attention("auto", torch.bfloat16) == "sdpa"
    assert choose_attention("flash_attention_2", torch.bfloat16) == "flash_attention_2"
    with pytest.raises(UserError, match="flash_attention_2 needs a GPU and bf16 or fp16; take sdpa"):
        choose_attention("flash_attention_2", torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="flash_attention_2 is not installed; pip install flash-attn"):
        choose_attention("flash_attention_2", torch.bfloat16)


@pytest.mark.parametrize(
    ("part", "bad"),
    [
        ("seg_projector", float("nan")),
        ("mask_decoder", float("inf")),
        ("vision_tower", float("-inf")),
        ("lm_head", float("nan")),
        ("spatial_prompt", float("nan")),
    ],
)
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_name(part, bad, tiny_folders, tmp_path):
    """Its answers would be wrong without an error: from our folder, whose `--verify` nobody has to pass."""
    model, _ = load(tiny_folders.llava, tiny_folders)
    model.add_spatial_prompt(2)
    name = next(
        name for name, value in model.state_dict().items() if part in name and value.is_floating_point()
    )
    model.state_dict()[name].view(-1)[-1] = bad
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=rf"model: not finite \(NaN or infinite\): {name}"):
        load_model(tmp_path / "model")


def test_a_base_and_a_sam_that_are_not_finite_are_refused_with_the_flag(tiny_folders, tmp_path):
    weights = torch.load(tiny_folders.sam, weights_only=True)
    name = "mask_decoder.iou_token.weight"
    weights[name][0, 0] = float("nan")
    torch.save(weights, tmp_path / "sam.pth")
    with pytest.raises(UserError, match=rf"--vision_pretrained \S*sam.pth: not finite .*sam.{name}"):
        load(tiny_folders.llava, tiny_folders, sam=str(tmp_path / "sam.pth"))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_finite_weights_of_every_size_are_finite(dtype):
    assert is_finite(torch.zeros(0, dtype=dtype))
    largest = min(torch.finfo(dtype).max, 1e308)
    assert is_finite(torch.full((1000,), largest, dtype=torch.float64).to(dtype)), "their sum is not"
    assert not is_finite(torch.tensor([1.0, float("nan"), 2.0]).to(dtype))
