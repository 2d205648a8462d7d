"""The best and the worst samples: small rows, and the same choice in any order and on any process."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.reports.best_and_worst import CompressedRow, Extremes, compress, decompress, worst_and_best
from utils.reports.sheet import mask_row


def test_a_compressed_image_is_small_and_its_labels_are_exact():
    image = np.zeros((900, 1200, 3), dtype=np.uint8)
    image[:, 600:] = (200, 100, 50)
    truth = np.zeros((900, 1200), dtype=np.uint8)
    truth[:, 600:] = 1
    row = decompress(compress(mask_row(image, truth, 1 - truth, question="?", answer="", iou=0.25)))
    assert row.image.shape == (240, 320, 3)
    assert (row.truth[:, :160] == -1).all()
    assert (row.truth[:, 160:] == 0).all()
    assert (row.prediction == -1 - row.truth).all()
    assert np.abs(row.image[:, 200:].astype(int) - (200, 100, 50)).max() <= 3
    assert row.score == 0.25


def test_a_small_image_keeps_its_size():
    image = np.full((3, 5, 3), 7, dtype=np.uint8)
    compressed = compress(mask_row(image, image[..., 0], image[..., 0], question="?", answer="", iou=1.0))
    assert isinstance(compressed, CompressedRow)
    assert decompress(compressed).image.shape == (3, 5, 3)


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("levels", [1, 3, 1000])  # few levels: many samples are equally good
@pytest.mark.parametrize("num_samples", [1, 7, 300])
def test_every_sample_that_ends_among_the_extremes_entered_when_it_came(num_samples, levels, num_processes):
    rng = np.random.default_rng(0)
    scores = {index: float(rng.integers(levels)) for index in range(num_samples)}
    scores[num_samples] = math.nan
    entered = set()
    for process in range(num_processes):
        extremes = Extremes(4)
        mine = [index for index in scores if index % num_processes == process]
        entered |= {index for index in mine if extremes.enters(index, scores[index])}
        ranked = list(extremes._worst), list(extremes._best)
        assert not any(extremes.enters(index, scores[index]) and index not in entered for index in mine)
        assert (extremes._worst, extremes._best) == ranked  # a second time changes nothing
    worst, best = worst_and_best(scores, 4)
    assert set(worst) | set(best) <= entered
    assert not set(worst) & set(best)
    known = sorted(score for score in scores.values() if not math.isnan(score))
    assert [scores[index] for index in worst] == known[: len(worst)]
    assert [scores[index] for index in best] == known[::-1][: len(best)]
    assert len(worst) + len(best) == min(8, num_samples)
    assert len(entered) <= max(120, num_samples // 2)  # not the image of every sample
