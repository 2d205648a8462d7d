"""Label Studio's brush code, compared with the converter of its own SDK."""

from __future__ import annotations

import numpy as np
import pytest

from utils.serving.brush import LONGEST, brush_code

brush = pytest.importorskip(
    "label_studio_sdk.converter.brush", reason="Label Studio's converter; tests/requirements-nodeps.txt"
)

MASKS = {
    "noise": np.random.default_rng(0).random((13, 17)) > 0.5,
    "one pixel": np.ones((1, 1), dtype=bool),
    "one pixel, outside": np.zeros((1, 1), dtype=bool),
    "one column": np.random.default_rng(1).random((40, 1)) > 0.5,
    "nothing": np.zeros((5, 9), dtype=bool),
    "everything": np.ones((5, 9), dtype=bool),
    "runs of every size": np.repeat(np.arange(11) % 2 == 0, [1, 2, 3, 4, 5, 60, 64, 65, 300, 7, 9])[None],
    "longer than a run may be": np.repeat([False, True, False], [LONGEST // 4, LONGEST // 4 + 1, 30])[None],
}


@pytest.mark.parametrize("name", MASKS)
def test_the_code_is_that_of_the_sdk_and_is_decoded_to_the_mask(name):
    mask = MASKS[name]
    code = brush_code(mask)
    assert all(type(value) is int and 0 <= value <= 255 for value in code)
    decoded = brush.decode_rle(code).reshape(*mask.shape, 4)
    assert np.array_equal(decoded, np.repeat(mask[..., None], 4, axis=2) * np.uint8(255))
    theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
    if name == "longer than a run may be":  # theirs has a longer code for what is left of it
        assert len(code) < len(theirs)
        return
    # Where the bits end with a byte theirs has another, of zeros.
    assert code == theirs[: len(code)]
    assert not any(theirs[len(code) :])
