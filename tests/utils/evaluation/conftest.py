"""Data sets of an evaluation, without files."""

from __future__ import annotations

import pytest

from tests.utils.evaluation.told_model import ListDataset
from utils.evaluation import evaluate as evaluation


@pytest.fixture
def datasets(monkeypatch):
    """Entry -> list of samples, in place of files."""
    known: dict[str, list] = {}
    monkeypatch.setattr(
        evaluation, "open_datasets", lambda entries, folder: {e: listed(known[e], e) for e in entries}
    )
    return known


def listed(samples, entry: str) -> ListDataset:
    return ListDataset(samples, has_no_target=entry.startswith("grefcoco"))
