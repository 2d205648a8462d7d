"""Weight files: an index names files of its folder, and archives are as torch.save writes them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.attack.configs import INDEXES
from benchmarks.attack.pickles import CONTAINERS, PAYLOADS
from benchmarks.attack.work import bomb
from model.checkpoints.weights import read_torch_file, weight_files
from model.errors import UserError


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/tmp/other.safetensors", "x/../a.safetensors", 1, None, ["a"], ""]
)
def test_a_shard_is_a_file_of_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises((UserError, FileNotFoundError), match=r"index\.json names"):
        weight_files(folder)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_is_none_is_one_line(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(INDEXES[name]))
    if name == "weight_map empty":
        assert weight_files(tmp_path) == []
    else:
        with pytest.raises(UserError, match=r"index\.json"):
            weight_files(tmp_path)


def test_a_compressed_archive_is_refused_before_it_inflates(tmp_path):
    (tmp_path / "a.pth").write_bytes(bomb("archive/data.pkl", 2**27))
    with pytest.raises(UserError, match="is compressed, which"):
        read_torch_file(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "b.pth")
    assert read_torch_file(tmp_path / "b.pth")["a"].shape == (3,)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "name", [name for name in PAYLOADS if name != "second pickle"]
)  # whose first one is sound
def test_code_in_weights_is_refused_without_the_advice_to_run_it(tmp_path, name, container):
    (tmp_path / "a.bin").write_bytes(CONTAINERS[container](PAYLOADS[name](f"touch {tmp_path}/executed")))
    with pytest.raises(UserError) as refusal:
        read_torch_file(tmp_path / "a.bin")
    assert "weights_only" not in str(refusal.value)
    assert not (tmp_path / "executed").exists()
