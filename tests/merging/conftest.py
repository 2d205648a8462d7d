"""A base, a run that started from it, and a merge of the two that works."""

from __future__ import annotations

import pytest

from tests.training_runs import trained_model, write_run


@pytest.fixture(scope="package")
def folders(tiny_folders):
    return tiny_folders


@pytest.fixture(scope="package")
def trained(folders):
    return trained_model(folders)


@pytest.fixture(scope="package")
def run(tmp_path_factory, trained, folders):
    """Weights of a run with its settings beside them."""
    return write_run(tmp_path_factory.mktemp("run"), trained, folders)


@pytest.fixture
def arguments(run, tmp_path):
    """The arguments of a merge that works."""
    (tmp_path / "out").mkdir()
    return ["--weight", str(run), "--save_path", str(tmp_path / "out" / "merged")]
