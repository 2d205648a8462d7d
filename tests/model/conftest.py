"""A tiny whole model for the tests of this folder."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.load import load_model
from model.lasagna import LasagnaForConditionalGeneration
from tests.tiny_weights import TinyFolders


@pytest.fixture
def tiny_model(tiny_folders: TinyFolders) -> LasagnaForConditionalGeneration:
    """A fresh model for every test, float32, its processor attached."""
    model, _ = load_model(tiny_folders.llava, dtype=torch.float32, **tiny_folders.parts)
    return model
