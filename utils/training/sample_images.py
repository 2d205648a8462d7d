"""Some samples of a validation as images: image, ground truth and prediction side by side, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from utils.reports.report import Report
from utils.reports.sheet import draw_sheet

NUM_SAMPLES = 8  # of all data sets together


def num_rows(num_datasets: int) -> int:
    """How many samples of each data set are kept, so that together they are NUM_SAMPLES or a few more."""
    return -(-NUM_SAMPLES // max(num_datasets, 1))


def sample_images(report: Report) -> Iterator[tuple[str, np.ndarray]]:
    """(tag, (height, width, 3) uint8) of at most NUM_SAMPLES samples, of each data set in turn.

    The samples of a data set are spread evenly over it, so they are the same in every validation of a run, and so are
    the tags.
    """
    columns = [
        [(f"val_samples/{result.dataset}/{number}", row) for number, row in enumerate(result.sheet, start=1)]
        for result in report.results
    ]
    in_turn = [one for row in zip_longest(*columns) for one in row if one is not None]
    for tag, row in in_turn[:NUM_SAMPLES]:
        yield tag, np.asarray(draw_sheet([row]))
