"""A tiny random member of each family of bases, assembled into a whole model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoints.load import load_model
from model.lasagna import LasagnaForConditionalGeneration
from tests.tiny_bases import FAMILIES, write_base_model
from tests.tiny_weights import write_sam


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, and sam.pth; copy them before changing anything."""
    folder = tmp_path_factory.mktemp("bases")
    write_sam(folder / "sam.pth")
    for family in FAMILIES:
        write_base_model(family, folder / family)
    return folder


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of a family."""
    return request.param


@pytest.fixture(scope="session")
def loaded(base_folders: Path) -> Callable[[str], LasagnaForConditionalGeneration]:
    """Reads the model around a base when it is asked for first; copy it before changing anything."""
    return functools.cache(functools.partial(load_base, base_folders))


@pytest.fixture
def model(
    family: str, loaded: Callable[[str], LasagnaForConditionalGeneration]
) -> LasagnaForConditionalGeneration:
    """A fresh model for every test, float32, its processor attached."""
    return copy.deepcopy(loaded(family))


def load_base(folders: Path, family: str, **options: object) -> LasagnaForConditionalGeneration:
    """The model around a base."""
    found, _ = load_model(folders / family, sam=str(folders / "sam.pth"), dtype=torch.float32, **options)
    return found
