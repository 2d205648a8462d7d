import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer

from model.lora import add_delta, add_lora, mark_trainable, merge


def adapted(model, **kwargs):
    model.vlm = add_lora(model.vlm, rank=4, alpha=8, dropout=0.0, **kwargs)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide everything
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_adapters_sit_on_queries_and_values_of_the_language_model_only(tiny_model):
    layers = [n for n, m in adapted(tiny_model).named_modules() if isinstance(m, LoraLayer)]
    assert len(layers) == 2 * 2
    assert all("language_model" in name and name.endswith(("q_proj", "v_proj")) for name in layers)


def test_only_the_parts_named_in_the_recipe_train(tiny_model):
    names = mark_trainable(adapted(tiny_model))
    assert names == [name for name, p in tiny_model.named_parameters() if p.requires_grad]
    kinds = {
        "adapters": ".lora_",
        "embeddings": ".embed_tokens.",
        "head": "lm_head",
        "projection": "seg_projector.",
        "decoder": "sam.mask_decoder.",
    }
    for part in kinds.values():
        assert any(part in name for name in names), part
    assert all(any(part in name for part in kinds.values()) for name in names)
    assert not any("vision_tower" in name or "multi_modal" in name for name in names)
    assert not any("image_encoder" in name or "prompt_encoder" in name for name in names)


def test_merging_equals_peft_and_keeps_the_outputs(tiny_model):
    model = adapted(tiny_model)
    reference = copy.deepcopy(model.vlm).merge_and_unload()
    embeddings = torch.randn(1, 6, 32)
    mask = torch.ones(1, 6, dtype=torch.long)
    with torch.no_grad():
        before = model.language_states(embeddings, mask)
        assert merge(model).base_vlm is model.vlm
        after = model.language_states(embeddings, mask)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert model.vlm.state_dict().keys() == reference.state_dict().keys()
    for name, value in model.vlm.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name])


def test_merging_in_bfloat16_rounds_once(tiny_model):
    model = adapted(tiny_model).to(torch.bfloat16)
    layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
    product = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    expected = (layer.base_layer.weight.float() + 2 * product).to(torch.bfloat16)
    base = layer.base_layer
    merge(model)
    assert torch.equal(base.weight, expected)


def test_an_adapter_is_rounded_as_in_training_before_it_is_added():
    weight = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    lora_a, lora_b = torch.tensor([[0.001, 3.0]]), torch.tensor([[1.0 + 2**-12]])  # in bfloat16, B is 1
    merged = add_delta(weight, lora_a, lora_b, scaling=0.5)
    assert merged.dtype == torch.bfloat16
    # 1 + 0.0005 is 1 in bfloat16, whose next value is 1.0078; 2 + 1.5 is exact.
    assert merged.tolist() == [[1.0, 3.5]]


def test_a_model_with_adapters_is_not_saved(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="merge"):
        adapted(tiny_model).save_pretrained(tmp_path)


def test_rank_zero_trains_without_adapters(tiny_model):
    vlm = tiny_model.vlm
    assert add_lora(vlm, rank=0) is vlm
    assert merge(tiny_model).vlm is vlm


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"rank": -1}, "-1"), ({"rank": 1, "target_pattern": "nothing"}, "nothing")]
)
def test_settings_that_cannot_be_are_refused(tiny_model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        add_lora(tiny_model.vlm, **kwargs)
