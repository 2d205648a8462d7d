"""Names in a confusion matrix are drawn as text, without warnings that print them."""

import warnings

import numpy as np
import pytest

from benchmarks.attack.names import NAMES
from utils.reports.confusion_plot import draw_confusion


@pytest.mark.parametrize("name", NAMES.values())
def test_names_are_no_formulas_and_no_warnings(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*[Tt]ight|constrained")
        draw_confusion(np.diag([3, 2, 0]), ("dog", name), tmp_path / "a.png", title=name)
    assert (tmp_path / "a.png").is_file()
