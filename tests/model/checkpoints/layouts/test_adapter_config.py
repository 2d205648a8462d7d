"""adapter_config.json: what is not known to be neutral is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from model.checkpoints.layouts import adapter
from model.checkpoints.layouts.llava_v1 import check_settings
from model.errors import UserError


def write(folder, **changes):
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    config = {**config, "peft_type": "LORA", "target_modules": ["q_proj"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.a.lora_A.weight": torch.ones(4, 8)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"revision": "main"},
     {"init_lora_weights": "eva"}, {"layers_to_transform": [0]}, {"option_of_tomorrow": None}, {"lora_dropout": 0.1}],
)  # fmt: skip
def test_a_plain_adapter_is_read_as_the_version_of_peft_here_writes_it(changes, tmp_path):
    write(tmp_path, **changes)
    assert list(adapter.read(tmp_path)) == ["base_model.model.a.lora_A.default.weight"]


@pytest.mark.parametrize(
    "changes",
    [{"init_lora_weights": name} for name in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "new")]
    + [{name: True} for name in ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "option_of_tomorrow")]
    + [{"rank_pattern": {"a": 8}}, {"alpha_pattern": {"a": 1}}, {"bias": "all"}, {"layer_replication": [[0, 4]]},
       {"trainable_token_indices": [1]}, {"alora_invocation_tokens": [1]}, {"target_parameters": ["x"]},
       {"revision": "v2"}],
)  # fmt: skip
def test_what_changes_the_meaning_of_the_weights_is_refused_with_the_way_to_convert(changes, tmp_path):
    write(tmp_path, **changes)
    name, value = next(iter(changes.items()))
    with pytest.raises(UserError) as error:
        adapter.read(tmp_path)
    assert f"adapter_config.json has {name}={value!r}, which is not supported" in str(error.value)
    cure = "path_initial_model_for_weight_conversion" if name == "init_lora_weights" else "merge_and_unload"
    assert cure in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [{"image_aspect_ratio": "anyres"}, {"mm_patch_merge_type": "spatial_unpad"}, {"mm_resampler_type": "perceiver"},
     {"mm_vision_select_feature": "slicefour"}, {"quantization_config": {"bits": 4}}, {"s2": True}],
)  # fmt: skip
def test_an_original_llava_of_another_kind_is_refused(changes, tmp_path):
    check_settings(tmp_path, {"image_aspect_ratio": "pad", "mm_vision_select_feature": "patch"})
    name, value = next(iter(changes.items()))
    with pytest.raises(UserError, match="which is not supported") as error:
        check_settings(tmp_path, changes)
    assert f"config.json has {name}={value!r}" in str(error.value)
