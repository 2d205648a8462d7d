"""Every layout gives the same model: each parameter, each buffer (persistent or not), and a forward pass.

transformers builds on the meta device, where what no file holds is easily lost or started anew.
"""

import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from model.checkpoints.layouts.llava_v1 import LINEAR_1, LINEAR_2, original_name
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from model.checkpoints.weights import read_folder
from model.lasagna import LasagnaForConditionalGeneration
from model.text.conversation import Conversation
from tests.tiny_weights import (
    CLIP_DIM,
    HIDDEN_DIM,
    edit_json,
    noise_image,
    save_in_shards,
    tiny_tower,
    with_tower,
)

ROW_OF_IMAGE = ("vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight")


def write_ours(model, folders, target):
    model.save_pretrained(target)


def write_ours_in_shards(model, folders, target):
    model.save_pretrained(target, max_shard_size="60KB")


def hugging_face(model, target):
    stock = LlavaForConditionalGeneration(model.config.vlm_config)
    stock.load_state_dict(model.vlm.state_dict())
    model.processor.tokenizer.save_pretrained(target)
    return stock


def write_hugging_face(model, folders, target):
    hugging_face(model, target).save_pretrained(target, save_original_format=False)


def write_hugging_face_with_old_names(model, folders, target):
    """As transformers named them before 4.52, which the published llava-1.5-7b-hf has."""
    stock = hugging_face(model, target)
    stock.save_pretrained(target)
    old = {}
    for name, value in stock.state_dict().items():
        for new, before in (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ):
            if name.startswith(new):
                old[before + name.removeprefix(new)] = value.contiguous()
    save_file(old, target / "model.safetensors", metadata={"format": "pt"})


def write_original(model, folders, target):
    shutil.copytree(folders.llava, target)


def write_original_in_shards(model, folders, target):
    shutil.copytree(folders.llava, target)
    (target / "pytorch_model.bin").unlink()
    save_in_shards(target, read_folder(folders.llava), 3, safetensors=False)


def write_original_with_its_tower(model, folders, target):
    """LLaVA 1.5 has the tower inside, and names one that may not be here."""
    shutil.copytree(folders.llava, target)
    weights = with_tower(read_folder(folders.llava), CLIPVisionModel.from_pretrained(folders.clip))
    torch.save(weights, target / "pytorch_model.bin")
    edit_json(target / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")


def write_exported(model, folders, target):
    write_released(model, target)


def write_exported_in_safetensors(model, folders, target):
    write_released(model, target)
    weights = read_folder(target)
    (target / "pytorch_model.bin").unlink()
    save_in_shards(target, weights, 2, safetensors=True)


WRITERS = (
    write_ours,
    write_ours_in_shards,
    write_hugging_face,
    write_hugging_face_with_old_names,
    write_original,
    write_original_in_shards,
    write_original_with_its_tower,
    write_exported,
    write_exported_in_safetensors,
)


def assert_the_same(model, expected):
    own, other = model.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    for name, value in other.items():
        rows = slice(None, -1) if name in ROW_OF_IMAGE else slice(None)  # <image>: nobody reads it
        assert torch.equal(own[name][rows], value[rows]), name
    # The buffers of a module that was built with memory, so that nothing could be lost.
    built = LasagnaForConditionalGeneration(model.config)
    buffers = dict(built.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    in_file = built.state_dict().keys()
    for name, value in model.named_buffers():
        assert not value.is_meta, name
        assert torch.equal(value, dict(expected.named_buffers())[name]), name
        if name not in in_file:
            assert torch.equal(value, buffers[name]), name
    with torch.no_grad():
        batch = model.processor.collate(
            [noise_image()], [Conversation.of("Where is the dog?", "It is [SEG].")], [0]
        )
        outputs = [each(**batch.fields()) for each in (model, expected)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs[0].masks, outputs[1].masks, rtol=0, atol=0)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_every_layout_gives_every_parameter_and_buffer(write, tiny_folders, tiny_model, tmp_path):
    write(tiny_model, tiny_folders, tmp_path / "folder")
    told = dict(tiny_folders.parts)
    if write is write_original_with_its_tower:
        shutil.copytree(tiny_folders.clip, tmp_path / "openai" / "clip-vit-large-patch14-336")
        del told["vision_tower"]
    model, _ = load_model(tmp_path / "folder", dtype=torch.float32, **told)
    if "hugging_face" in write.__name__:  # no projection inside, and a start of its own
        model.seg_projector.load_state_dict(tiny_model.seg_projector.state_dict())
    assert_the_same(model, tiny_model)


@pytest.mark.parametrize("write", [write_ours, write_hugging_face, write_original, write_exported])
def test_the_language_model_of_every_layout_attends_as_asked(
    write, tiny_folders, tiny_model, tmp_path, monkeypatch
):
    """By the kernels that its own layers call: what the configuration says is not always what runs."""
    write(tiny_model, tiny_folders, tmp_path / "folder")
    called = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def record(*arguments, **named):
        called.append(named)
        return fused(*arguments, **named)

    for name, is_fused in (("eager", False), ("sdpa", True), ("auto", True)):
        model, _ = load_model(tmp_path / "folder", attn_implementation=name, **tiny_folders.parts)
        called.clear()
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
            model.language_states(
                torch.zeros(1, 4, tiny_model.config.vlm_config.text_config.hidden_size), None
            )
        assert bool(called) == is_fused
        assert model.attention == ("eager" if name == "eager" else "sdpa")


@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("side", [224, 336])
def test_both_projectors_and_both_image_sizes_of_llava(tiny_folders, tmp_path, projector, side):
    """LLaVA v1: 224 px and a linear projector; v1.5: 336 px and two layers; and what lies between."""
    tower = tiny_tower(image_size=side)
    tower.save_pretrained(tmp_path / "clip")
    folder = shutil.copytree(tiny_folders.llava, tmp_path / "llava")
    weights = read_folder(tiny_folders.llava)
    first = torch.nn.Linear(CLIP_DIM, HIDDEN_DIM)
    second = torch.nn.Linear(HIDDEN_DIM, HIDDEN_DIM) if projector == "mlp2x_gelu" else None
    for kind in ("weight", "bias"):
        del weights[f"model.mm_projector.{kind}"]
        weights[original_name(LINEAR_1 + kind, projector)] = getattr(first, kind).detach()
        if second is not None:
            weights[original_name(LINEAR_2 + kind, projector)] = getattr(second, kind).detach()
    torch.save(weights, folder / "pytorch_model.bin")
    edit_json(folder / "config.json", mm_projector_type=projector)
    told = {**tiny_folders.parts, "vision_tower": str(tmp_path / "clip")}
    model, processor = load_model(folder, dtype=torch.float32, **told)
    assert processor.images.num_image_tokens == (side // 14) ** 2
    pixels = torch.from_numpy(processor.images.clip_image(noise_image())).unsqueeze(0)
    assert pixels.shape[-2:] == (side, side)
    inputs = torch.from_numpy(processor.images.clip(noise_image(), return_tensors="np")["pixel_values"])
    with torch.no_grad():
        patches = tower(inputs, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = first(patches)
        if second is not None:
            expected = second(torch.nn.functional.gelu(expected))
        torch.testing.assert_close(
            torch.stack(model.image_features({"clip_images": pixels}).tokens), expected, rtol=1e-4, atol=1e-5
        )
    model.save_pretrained(tmp_path / "ours")
    assert_the_same(load_model(tmp_path / "ours")[0], model)


def test_a_tower_inside_needs_no_folder_for_its_sizes(tiny_folders, tmp_path):
    """CLIP's heads are 64 wide; everything else is read from the weights."""
    tower = tiny_tower(hidden_size=128, intermediate_size=96, num_hidden_layers=2, image_size=42)
    folder = shutil.copytree(tiny_folders.llava, tmp_path / "llava")
    weights = with_tower(read_folder(tiny_folders.llava), tower)
    weights["model.mm_projector.weight"] = torch.randn(HIDDEN_DIM, 128)
    torch.save(weights, folder / "pytorch_model.bin")
    model, processor = load_model(folder, dtype=torch.float32, sam=tiny_folders.parts["sam"])
    found = model.config.vlm_config.vision_config
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    for name in sizes:
        assert getattr(found, name) == getattr(tower.config, name), name
    assert found.hidden_act == "quick_gelu"
    assert processor.images.num_image_tokens == 9


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_ours, "LaSagnA folder"),
        (write_hugging_face, "Hugging Face LLaVA"),
        (write_original, "original LLaVA"),
        (write_exported, "released LaSagnA or LISA"),
    ],
)
def test_what_was_recognised_is_said_in_one_line(write, said, tiny_folders, tiny_model, tmp_path, caplog):
    write(tiny_model, tiny_folders, tmp_path / "folder")
    with caplog.at_level(logging.INFO, logger="model"):
        load_model(tmp_path / "folder", **tiny_folders.parts)
    assert [line for line in caplog.messages if said in line] == [f"{tmp_path}/folder: {said}"]
