"""A tiny untrained model that the tests of this folder talk to, and one that says what it is told."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.load import load_model
from tests.tiny_weights import write_base
from tests.told_answers import speaker


@pytest.fixture(scope="session")
def tiny(llama_tokenizer_folder, tmp_path_factory):
    """Decoded under constraint; float32. Tests leave it as it is."""
    folders = write_base(tmp_path_factory.mktemp("serving"), llama_tokenizer_folder)
    return load_model(folders.llava, dtype=torch.float32, **folders.parts)[0]


@pytest.fixture
def says(tiny, monkeypatch):
    """Makes the model answer every question in words with these pieces."""
    return speaker(tiny, monkeypatch)
