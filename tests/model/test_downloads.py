"""Weights and tokenizers that are not what their names say."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.layouts.mask_decoder import is_mask_decoder_file, read_mask_decoder
from model.checkpoints.weights import read_weight_file
from model.downloads import check_folder
from model.errors import UserError
from model.folders import local_folder
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer
from tests.commands import REPOSITORY

TOY = REPOSITORY / "assets" / "toy"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 13466696\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
XML = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'


@pytest.mark.parametrize("name", ["a.bin", "a.pth", "a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(POINTER, "Git LFS pointer.*git lfs pull"), (PAGE, "web page.*download it again"), (XML, "web page"),
     (b"", "is empty"), (b'{"error": "not found"}', "is a text, not weights"),
     (b"404: Not Found", "is a text"), (b"\xff\xd8\xff\xe0JFIF", "is an image"),
     (b"\x1f\x8b\x08", "is a packed archive")],
)  # fmt: skip
def test_what_a_file_of_weights_really_is_is_said_with_the_cure(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_weight_file(path)


def test_half_a_download_is_cut_off(tmp_path):
    torch.save({"a": torch.ones(10_000)}, tmp_path / "a.pth")
    save_file({"a": torch.ones(10_000)}, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:20_000])
        with pytest.raises(UserError, match=r"is cut off.*download it again"):
            read_weight_file(tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer.model", "config.json", "pytorch_model.bin"])
@pytest.mark.parametrize(("content", "said"), [(POINTER, "Git LFS pointer"), (PAGE, "web page")])
def test_every_file_of_a_models_folder_is_looked_at(name, content, said, tmp_path):
    folder = tmp_path / "llava"
    shutil.copytree(TOY / "llava", folder)
    check_folder(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is a.*{said}"):
        local_folder(folder, flag="--version")


@pytest.mark.parametrize("name", ["tokenizer.model", "generation_config.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (os.mkfifo, "is a pipe or a device, not a file"),
        (os.mkdir, "is a folder, not a file"),
        (lambda path: os.symlink("/dev/zero", path), "is a pipe or a device"),
        (
            lambda path: os.symlink("/nowhere/blob", path),
            "is a link to nothing; copy or download the model again",
        ),
    ],
)
def test_what_is_no_file_is_not_taken_for_an_absent_one(name, put, said, tmp_path):
    put(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}:? {said}"):
        local_folder(tmp_path, flag="--version")


@pytest.mark.parametrize("content", [POINTER, b"\x0a\x0e\x0a\x05<unk>\x15", b"not a model"])
def test_a_tokenizer_that_cannot_be_read_names_its_file(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


def wrapped(weights):
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    return {
        "model": {"model": weights, "epoch": 3},
        "state_dict": {"state_dict": weights, "best": 0.5},
        "module": prefixed,
        "both": {"model": prefixed, "epoch": 3, "optimizer": {"state": {}}},
        "two wrappers": {"state": 1, "model": {"state_dict": weights}},
        "another prefix": {"model_state_dict": {f"sam.{name}": value for name, value in weights.items()}},
    }


def test_sam_is_taken_out_of_what_fine_tuners_put_around_it(tiny_folders, tmp_path):
    settings, weights = read_mask_decoder(tiny_folders.sam)
    for name, content in wrapped(weights).items():
        torch.save(content, tmp_path / "sam.pth")
        found, unwrapped = read_mask_decoder(tmp_path / "sam.pth")
        assert (found, unwrapped.keys()) == (settings, weights.keys()), name
        assert is_mask_decoder_file(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, r"but epoch \(int\), optimizer \(dict\)"),
        ([1, 2], "but a list"),
        ({"model": {"encoder.weight": torch.ones(1)}}, r"not a SAM.*holds encoder\.weight \(Tensor\)"),
    ],
)
def test_what_is_no_sam_is_said(content, said, tmp_path):
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(UserError, match=said):
        read_mask_decoder(tmp_path / "sam.pth")


def test_a_misspelt_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models" / "llava").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("model.folders.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(
        FileNotFoundError, match="--version models/lava is not there; the folder models holds llava"
    ):
        local_folder("models/lava", flag="--version")


@pytest.mark.parametrize(
    "content", ["{}", '{"format": {}, "sam_image_size": 9, "num_image_tokens": 4, "extra": 1}']
)
def test_settings_of_a_processor_that_were_edited_are_told(content, tmp_path):
    (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"processor_config\.json holds .* and must hold format, "):
        LasagnaProcessor.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no sequence format that was stored"):
        SequenceFormat.from_dict({"name": "xml"})
