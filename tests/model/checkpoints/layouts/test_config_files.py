"""A config.json that was cut down or edited is told in one line, before a model is built of what it says."""

import json
import shutil

import pytest
import torch

from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from tests.tiny_weights import edit_json

COPY_IT = "copy config.json from where the weights come from"


@pytest.fixture
def ours(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def no_model_is_built(monkeypatch):
    """Loading allocates a model in Hugging Face's `from_pretrained`."""
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("a model was built")
    )


@pytest.mark.parametrize("read", [load_model, LasagnaForConditionalGeneration.from_pretrained])
@pytest.mark.parametrize(
    "missing", ["vlm_config", "sequence_format", "image_token_id", "seg_token_id", "everything"]
)
def test_what_config_json_lacks_is_named_first(missing, read, ours, no_model_is_built):
    if missing == "everything":
        (ours / "config.json").write_text('{"model_type": "lasagna"}')
        missing = "vlm_config, sequence_format, image_token_id, seg_token_id"
    else:
        edit_json(ours / "config.json", **{missing: None})
    with pytest.raises(UserError, match=rf"ours/config\.json has no {missing}; {COPY_IT}"):
        read(ours)


@pytest.mark.parametrize("layout", ["ours", "Hugging Face LLaVA", "original LLaVA"])
def test_a_config_of_default_sizes_is_told_before_they_are_allocated(
    layout, ours, tiny_model, tiny_folders, tmp_path, no_model_is_built
):
    folder, flags = ours, {}
    if layout == "ours":
        edit_json(folder / "config.json", vlm_config={"model_type": "llava"})
    elif layout == "original LLaVA":
        folder = shutil.copytree(tiny_folders.llava, tmp_path / "llava")
        flags = tiny_folders.parts
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        edit_json(folder / "config.json", **dict.fromkeys(sizes), num_key_value_heads=None)
    else:
        folder, flags = tmp_path / "hf", {"sam": tiny_folders.parts["sam"]}
        tiny_model.vlm.save_pretrained(folder)
        edit_json(folder / "config.json", text_config={"model_type": "llama"})
    with pytest.raises(
        UserError, match=rf"describes a model of [67],[\d,]+ parameters, but .*{COPY_IT}"
    ) as raised:
        load_model(folder, **flags)
    assert "\n" not in str(raised.value)


def test_an_unknown_prompt_is_refused_before_the_weights_are_read(ours, no_model_is_built):
    edit_json(ours / "config.json", prompt="nonsense")
    with pytest.raises(UserError, match=r"unknown prompt 'nonsense' in config\.json; known: .*llava_v1"):
        load_model(ours)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("processor_config.json", {"prompt": "llava_llama_2"}, "of config.json is llava_v1, but .* llava_llama_2"),
        ("config.json", {"image_aspect_ratio": "pad"}, "image_aspect_ratio of config.json is pad, but .* square"),
        ("config.json", {"prompt": "llava_llama_2"}, "prompt of config.json is llava_llama_2, but .* llava_v1"),
        ("config.json", {"sequence_format": {"name": "paper", "seg": "[SEG]", "neg": "[NEG]",
                                             "order_following": False}}, "sequence_format of config.json is"),
    ],
)  # fmt: skip
def test_a_config_and_a_processor_that_disagree_are_refused(file, change, said, ours):
    edit_json(ours / file, **change)
    with pytest.raises(UserError, match=said):
        load_model(ours)


def test_our_settings_in_an_exported_folder_are_checked_too(tiny_model, tmp_path):
    write_released(tiny_model, tmp_path / "out")
    path = tmp_path / "out" / "lasagna" / "config.json"
    whole = json.loads(path.read_text())
    edit_json(path, sequence_format=None)
    with pytest.raises(UserError, match=rf"lasagna/config\.json has no sequence_format; {COPY_IT}"):
        load_model(tmp_path / "out", dtype=torch.float32)
    path.write_text(json.dumps(whole | {"prompt": "nonsense"}))
    with pytest.raises(UserError, match="unknown prompt 'nonsense'"):
        load_model(tmp_path / "out", dtype=torch.float32)
