"""The merge shard by shard: equal to the merge in memory, small, whole or not there at all."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import model.checkpoints.lazy as stored
import model.checkpoints.write as writing
from merge_lora_weights_and_save_hf_model import main
from model.checkpoints.checkpoint import open_trained
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.lazy import StoredWeights
from model.checkpoints.load import load_model
from model.checkpoints.merge import open_merge, save
from model.checkpoints.trained import apply_trained
from model.checkpoints.write import plan_shards
from model.lora import add_lora, mark_trainable, merge
from model.text.format import SequenceFormat
from tests.training_runs import trainable, trained_model, write_run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def merge_in_memory(base, weights, *, dtype, alpha=None, **flags):
    model, _ = load_model(base, dtype=dtype, **flags)
    return apply_trained(model, open_trained(weights), lora_alpha=alpha)


def content(file):
    """Bytes; of a configuration what it says of the model, without where that was."""
    if file.name != "config.json":
        return file.read_bytes()
    values = json.loads(file.read_text())
    values.get("vlm_config", {}).pop("_name_or_path", None)
    return {key: value for key, value in values.items() if key not in ("architectures", "dtype")}


def assert_same_folder(written, expected):
    """Every file, weights compared as a whole whatever their shards."""
    files = {file.name for file in expected.iterdir() if "safetensors" not in file.name}
    found = {file.name for file in written.iterdir() if "safetensors" not in file.name}
    assert found == files | {"README.md", "manifest.json"}  # these two are the merge's own
    for name in files:
        assert content(written / name) == content(expected / name), name
    ours = {k: v for file in written.glob("*.safetensors") for k, v in load_file(file).items()}
    theirs = load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def base_folder(kind, folders, trained, place):
    """The same base in another layout: (folder, flags)."""
    if kind == "original LLaVA":
        return folders.llava, folders.parts
    plain, _ = load_model(folders.llava, dtype=torch.float32, **folders.parts)
    if kind == "Hugging Face LLaVA":
        plain.vlm.save_pretrained(place / "hf")
        plain.processor.save_pretrained(place / "hf")
        (place / "hf" / "processor_config.json").unlink()
        return place / "hf", {"sam": folders.parts["sam"]}
    if kind == "ours":
        merge_copy(trained).save_pretrained(place / "ours")
        return place / "ours", {}
    write_released(merge_copy(trained), place / "released")
    return place / "released", {}


def merge_copy(trained):
    model = copy.deepcopy(trained).eval()
    model.processor = trained.processor
    return merge(model)


# ---------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["original LLaVA", "Hugging Face LLaVA", "ours", "released LaSagnA or LISA"])
def test_shard_by_shard_equals_the_merge_in_memory(kind, precision, folders, trained, tmp_path, monkeypatch):
    base, flags = base_folder(kind, folders, trained, tmp_path)
    started = trained_model(folders, base=(base, flags))
    torch.save(trainable(started), tmp_path / "weights.bin")
    expected = merge_in_memory(base, tmp_path / "weights.bin", dtype=DTYPES[precision], alpha=32, **flags)
    expected.save_pretrained(tmp_path / "expected")
    monkeypatch.setattr(stored, "RELEASE_AFTER", 2000)  # files are opened again and again
    merged = open_merge(
        str(base),
        open_trained(tmp_path / "weights.bin"),
        scratch=tmp_path,
        dtype=DTYPES[precision],
        lora_alpha=32,
        **flags,
    )
    save(merged, tmp_path / "merged", card="", shard_size=20_000)
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 3
    assert_same_folder(tmp_path / "merged", tmp_path / "expected")
    saved = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert saved["architectures"] == ["LasagnaForConditionalGeneration"]
    assert saved["dtype"] == str(DTYPES[precision]).removeprefix("torch.")
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()
    assert not list(tmp_path.glob(".*"))


def test_rank_and_targets_come_from_the_checkpoint(folders, tmp_path):
    pattern = r".*language_model.*\.(k_proj|o_proj|down_proj)"
    model = trained_model(folders, rank=3, pattern=pattern)
    weights = write_run(tmp_path / "run", model, folders, lora_r=8, lora_target_modules="q_proj")
    assert main(["--weight", str(weights), "--save_path", str(tmp_path / "m"), "--precision=fp32"]) == 0
    merged, expected = load_model(tmp_path / "m")[0].state_dict(), merge_copy(model).state_dict()
    before = load_model(folders.llava, dtype=torch.float32, **folders.parts)[0].state_dict()
    layer = "vlm.model.language_model.layers.1."
    for name in (layer + "self_attn.k_proj.weight", layer + "mlp.down_proj.weight"):
        torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=1e-6)
        assert not torch.equal(merged[name], before[name])
    assert torch.equal(merged[layer + "self_attn.q_proj.weight"], before[layer + "self_attn.q_proj.weight"])


def test_the_released_codes_checkpoint_merges_to_its_own_merged_model(golden, tmp_path):
    folder = golden / "checkpoints"
    tower = str(folder / "clip-vit-tiny-patch14")
    merged = open_merge(
        str(folder / "llava-tiny-base"),
        open_trained(folder / "lora_weight" / "pytorch_model.bin"),
        scratch=tmp_path,
        vision_tower=tower,
        sam=str(folder / "sam_tiny.pth"),
        dtype=torch.float32,
        format="release",
        lora_alpha=16,
    )
    save(merged, tmp_path / "merged", card="")
    ours = load_model(tmp_path / "merged")[0]
    theirs = load_model(folder / "lasagna-tiny", vision_tower=tower, dtype=torch.float32)[0].state_dict()
    for name, value in ours.state_dict().items():
        num_rows = ours.config.image_token_id if len(value) > ours.config.image_token_id else None
        error = (value[:num_rows] - theirs[name][:num_rows]).abs().max()
        assert error <= 1e-4 * theirs[name].abs().max(), name


def test_a_peft_folder_is_merged_as_in_memory(folders, trained, tmp_path):
    trained.vlm.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    flags = [f"--{key}={value}" for key, value in folders.flags.items()]
    base = ["--version", str(folders.llava), *flags, "--precision=fp32"]
    assert main(["--weight", str(tmp_path / "adapter"), *base, "--save_path", str(tmp_path / "m")]) == 0
    expected = merge_in_memory(folders.llava, tmp_path / "adapter", dtype=torch.float32, **folders.parts)
    merged = load_model(tmp_path / "m")[0].state_dict()
    assert all(torch.equal(merged[name], value) for name, value in expected.state_dict().items())
    name = "vlm.model.language_model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[name], merge_copy(trained).state_dict()[name], rtol=0, atol=1e-6)


def test_frozen_weights_in_the_checkpoint_win_over_the_base(folders, trained, tmp_path):
    weights = dict(trained.state_dict())
    name = "vlm.base_model.model.model.language_model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name] + 1
    torch.save(weights, tmp_path / "all.bin")
    merged = open_merge(
        str(folders.llava),
        open_trained(tmp_path / "all.bin"),
        scratch=tmp_path,
        dtype=torch.float32,
        lora_alpha=32,
        **folders.parts,
    )
    assert torch.equal(merged.read("vlm.model.language_model.layers.0.mlp.up_proj.weight"), weights[name])
    expected = merge_in_memory(
        folders.llava, tmp_path / "all.bin", dtype=torch.float32, alpha=32, **folders.parts
    )
    assert all(torch.equal(merged.read(name), value) for name, value in expected.state_dict().items())


def test_the_released_layout_is_written_as_from_memory(folders, run, tmp_path):
    target = tmp_path / "lisa"
    assert main(["--weight", str(run), "--save_path", str(target), "--layout=lisa", "--precision=fp32"]) == 0
    model = merge_in_memory(folders.llava, run, dtype=torch.float32, **folders.parts)
    write_released(model, tmp_path / "expected")
    ours, theirs = (
        torch.load(target / "pytorch_model.bin"),
        torch.load(tmp_path / "expected/pytorch_model.bin"),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for file in (tmp_path / "expected").rglob("*"):
        other = target / file.relative_to(tmp_path / "expected")
        assert other.exists(), file
        if file.suffix in (".json", ".model"):
            assert content(other) == content(file), file
    again = load_model(target)[0].state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items() if len(v) < 700)


def test_a_format_that_the_run_was_trained_with_is_kept(folders, tmp_path):
    format = SequenceFormat.named("lisa")
    model, _ = load_model(folders.llava, dtype=torch.float32, format=format, **folders.parts)
    model.vlm = add_lora(model.vlm, rank=2, alpha=4)
    mark_trainable(model)
    run = write_run(tmp_path / "run", model, folders)
    assert main(["--weight", str(run), "--save_path", str(tmp_path / "m")]) == 0
    assert load_model(tmp_path / "m")[1].format == format


# ------------------------------------------------------------------------------------------------ memory


def test_no_more_than_a_shard_is_held_and_every_weight_is_written_once(folders, run, tmp_path, monkeypatch):
    held = []

    def record(tensors, path, metadata=None):
        held.append(sum(value.nbytes for value in tensors.values()))
        save_file(tensors, path, metadata)

    merged = open_merge(
        str(folders.llava), open_trained(run), scratch=tmp_path, dtype=torch.float32, **folders.parts
    )
    monkeypatch.setattr(writing, "save_file", record)
    seen = []
    save(merged, tmp_path / "m", card="", shard_size=100_000, progress=seen.append)
    assert max(held) <= max(100_000, max(merged.sizes.values()))
    assert len(held) > 3
    assert sum(held) == sum(merged.sizes.values()) == sum(seen) / 2
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(held)
    assert list(index["weight_map"]) == sorted(merged.sizes)


def test_shards_keep_the_order_and_hold_what_they_may():
    sizes = {"a": 3, "b": 3, "c": 5, "d": 1, "e": 9}
    assert plan_shards(sizes, 6) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["e"],  # larger than a shard: closes none
        "model-00003-of-00003.safetensors": ["c", "d"],
    }
    assert plan_shards(sizes, 100, "pytorch_model.bin") == {"pytorch_model.bin": list(sizes)}
    assert plan_shards({}, 6) == {}


def test_weights_are_read_by_name_from_every_kind_of_file(tmp_path):
    weights = {f"w{i}": torch.randn(4, i + 1) for i in range(5)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.bin")
    torch.save({"state_dict": weights}, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.bin", "c.bin"):
        source = StoredWeights(tmp_path / name)
        assert source.shapes == {key: value.shape for key, value in weights.items()}
        assert all(torch.equal(source.read(key), value) for key, value in weights.items())
