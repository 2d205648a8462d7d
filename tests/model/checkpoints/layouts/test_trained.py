"""`load_model` on what a training run left: DeepSpeed's folder, zero_to_fp32.py's output, a PEFT folder."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from model.checkpoints.load import load_model
from model.errors import MisfitError
from model.lora import TARGET_PATTERN, add_lora, mark_trainable, merge
from tests.tiny_weights import HIDDEN_DIM, edit_json, save_in_shards
from tests.training_runs import save_settings, trainable, write_zero_checkpoint

RANK, ALPHA = 4, 32


@pytest.fixture
def trained(tiny_model):
    """A model as after training: adapters beside the weights, every trained weight moved."""
    tiny_model.vlm = add_lora(tiny_model.vlm, rank=RANK, alpha=ALPHA, dropout=0.0)
    mark_trainable(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return tiny_model


def assert_merged(model, trained):
    expected = merge(trained).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "num_ranks", "said"),
    [(0, 1, "ZeRO-0"), (1, 1, "ZeRO-1 or 2, 1 p"), (2, 3, "ZeRO-1 or 2, 3 p"), (3, 2, "ZeRO-3, 2 p")],
)
def test_a_checkpoint_folder_is_a_model(trained, tiny_folders, tmp_path, caplog, stage, num_ranks, said):
    run = tmp_path / "exp" / "ckpt_model"
    write_zero_checkpoint(run, trained, stage=stage, num_ranks=num_ranks)
    save_settings(run, trained, tiny_folders)
    with caplog.at_level(logging.INFO, logger="model"):
        model, processor = load_model(tmp_path / "exp", dtype=torch.float32)
    assert sum("DeepSpeed checkpoint global_step7, " + said in line for line in caplog.messages) == 1
    assert processor.format == trained.processor.format
    assert_merged(model, trained)


@pytest.mark.parametrize("form", ["pytorch_model.bin", "shards", "run/pytorch_model.bin"])
def test_what_zero_to_fp32_wrote_is_a_model(trained, tiny_folders, tmp_path, form):
    """A file, a folder of shards, or a folder that is called like a file."""
    save_settings((tmp_path / form).parent / "ckpt_model", trained, tiny_folders)
    if form == "pytorch_model.bin":
        torch.save(trainable(trained), tmp_path / form)
    else:
        (tmp_path / form).mkdir(parents=True)
        save_in_shards(tmp_path / form, trainable(trained), 3, safetensors=False)
    model, _ = load_model(tmp_path / form, dtype=torch.float32)
    assert_merged(model, trained)


def test_without_its_settings_a_run_needs_its_base(trained, tiny_folders, tmp_path):
    torch.save(trainable(trained), tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"which model it started from.*--version"):
        load_model(tmp_path / "weights.bin")
    model, _ = load_model(
        tmp_path / "weights.bin",
        base=tiny_folders.llava,
        lora_alpha=ALPHA,
        dtype=torch.float32,
        **tiny_folders.parts,
    )
    assert_merged(model, trained)


@pytest.fixture
def adapter(tiny_folders, tiny_model, tmp_path):
    """A LoRA that PEFT saved, on the language model of a folder of ours; and the model as PEFT computes it."""
    tiny_model.save_pretrained(tmp_path / "ours")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=TARGET_PATTERN)
    peft = get_peft_model(tiny_model.vlm, config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "ours"))
    return tmp_path / "adapter", peft.merge_and_unload().state_dict()


def test_a_plain_adapter_folder_is_merged_into_the_base_it_names(adapter, caplog):
    folder, expected = adapter
    with caplog.at_level(logging.INFO, logger="model"):
        model, _ = load_model(folder)
    assert sum("PEFT adapter, on top of" in line for line in caplog.messages) == 1
    for name, value in model.vlm.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_with_the_names_of_original_llava_is_read(adapter):
    folder, expected = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("model.language_model.", "model."): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "adapter_model.safetensors")
    model, _ = load_model(folder)
    for name, value in model.vlm.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_lora_of_another_base_is_refused_with_names_and_shapes(adapter):
    folder, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = torch.zeros(RANK, 2 * HIDDEN_DIM)
    deep = name.replace("layers.0", "layers.30")
    weights[deep] = torch.zeros(RANK, HIDDEN_DIM)
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(MisfitError) as error:
        load_model(folder)
    table = str(error.value)
    assert f"({RANK}, {HIDDEN_DIM})" in table
    assert f"({RANK}, {2 * HIDDEN_DIM})" in table
    assert "layers.30" in table
    assert "--version" in table


def test_an_adapter_with_half_its_layers_is_refused(adapter):
    folder, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    gone = next(name for name in weights if "lora_B" in name)
    del weights[gone]
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(MisfitError, match=r"lora_B\.default\.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"peft_type": "IA3"}, {"alpha_pattern": {"q_proj": 3}}]
)
def test_adapters_of_other_kinds_are_refused(adapter, change):
    folder, _ = adapter
    edit_json(folder / "adapter_config.json", **change)
    with pytest.raises(ValueError, match=r"not supported|only LORA"):
        load_model(folder)


def test_a_run_on_another_base_is_refused(trained, tiny_folders, tmp_path):
    """Another vocabulary: the tokens of the run's format are not those that the base is given here."""
    run = tmp_path / "ckpt_model"
    write_zero_checkpoint(run, trained, stage=2, num_ranks=1)
    save_settings(run, trained, tiny_folders)
    with pytest.raises(MisfitError, match=r"embed_tokens[\s\S]*--version"):
        load_model(run, format="release")


def test_a_run_is_not_quantised_before_it_is_merged(trained, tiny_folders, tmp_path):
    torch.save(trainable(trained), tmp_path / "weights.bin")
    with pytest.raises(ValueError, match="merge it before --load_in_8bit"):
        load_model(tmp_path / "weights.bin", quantization="8bit", dtype=torch.bfloat16)


def test_the_seed_of_the_base_does_not_matter(trained, tiny_folders, tmp_path):
    """Whatever was new when training started is in its checkpoint."""
    run = tmp_path / "ckpt_model"
    write_zero_checkpoint(run, trained, stage=2, num_ranks=1)
    save_settings(run, trained, tiny_folders)
    assert_merged(load_model(run, dtype=torch.float32, seed=9)[0], trained)
