import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.utils.data.layouts import HEIGHT, WIDTH, box_polygon, compressed_rle, uncompressed_rle
from utils.data.masks import decode_segmentation, union

TRIANGLE = [3.5, 2.0, 20.25, 6.5, 8.0, 21.75]
BLOB = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4


def pycocotools_mask(segmentation):
    coco = COCO()
    coco.imgs = {1: {"id": 1, "height": HEIGHT, "width": WIDTH}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


@pytest.mark.parametrize(
    "segmentation",
    [
        [TRIANGLE],
        [TRIANGLE, box_polygon(20, 10, 8, 8)],
        [TRIANGLE, box_polygon(4, 3, 9, 9)],
        [box_polygon(-5, -5, 12, 60)],
        [box_polygon(100, 100, 5, 5)],
        compressed_rle(BLOB),
        uncompressed_rle(BLOB),
        uncompressed_rle(~BLOB),
        compressed_rle(np.zeros((HEIGHT, WIDTH))),
    ],
)
def test_masks_equal_those_of_pycocotools(segmentation):
    mask = decode_segmentation(segmentation, HEIGHT, WIDTH)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, pycocotools_mask(segmentation))


def test_run_length_codes_round_trip():
    for code in (compressed_rle(BLOB), uncompressed_rle(BLOB)):
        assert np.array_equal(decode_segmentation(code, HEIGHT, WIDTH), BLOB)


def test_a_compressed_code_that_was_cut_off_is_refused_at_every_length():
    """pycocotools would decode it to memory that nobody has set."""
    counts = compressed_rle(BLOB)["counts"]
    for length in range(len(counts)):
        with pytest.raises(ValueError, match="run"):
            decode_segmentation({"size": [HEIGHT, WIDTH], "counts": counts[:length]}, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="invalid characters"):
        decode_segmentation({"size": [HEIGHT, WIDTH], "counts": "\u00e9" + counts}, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="too long"):
        decode_segmentation({"size": [HEIGHT, WIDTH], "counts": "P" * 30 + "0"}, HEIGHT, WIDTH)


def test_compressed_codes_of_any_shape_are_accepted():
    rng = np.random.default_rng(1)
    for _ in range(100):
        height, width = (int(size) for size in rng.integers(1, 50, 2))
        mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
        assert np.array_equal(decode_segmentation(compressed_rle(mask), height, width), mask)


def test_a_list_of_run_length_codes_is_their_union_and_overlaps_count_once():
    codes = [compressed_rle(BLOB), uncompressed_rle(BLOB), compressed_rle(~BLOB)]
    assert np.array_equal(decode_segmentation(codes[:2], HEIGHT, WIDTH), BLOB)
    assert decode_segmentation(codes, HEIGHT, WIDTH).min() == 1
    assert decode_segmentation(codes, HEIGHT, WIDTH).max() == 1


def test_nothing_and_degenerate_polygons_cover_nothing():
    assert not decode_segmentation([], HEIGHT, WIDTH).any()
    # pycocotools takes four numbers for a box; a polygon of two points is no area.
    assert not decode_segmentation([[2, 2, 10, 10]], HEIGHT, WIDTH).any()
    mixed = decode_segmentation([[2, 2, 10, 10], TRIANGLE], HEIGHT, WIDTH)
    assert np.array_equal(mixed, pycocotools_mask([TRIANGLE]))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("polygon", "a list of polygons or a run-length code"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x and y in turn"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite numbers"),
        ([[1, 2, 3, 4, 5, "6"]], "finite numbers"),
        ([{"counts": [1]}], "'counts' and 'size'"),
        ({"size": [2, 2], "counts": [4]}, r"size \(2, 2\), image of \(24, 32\)"),
        ({"size": [HEIGHT, WIDTH], "counts": [4]}, "add up to 4"),
        ({"size": 24, "counts": [4]}, r"size 24, image of \(24, 32\)"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 769]}, "whole numbers >= 0"),
        ({"size": [HEIGHT, WIDTH], "counts": ["768"]}, "whole numbers >= 0"),
        ({"size": [HEIGHT, WIDTH], "counts": 768}, "'counts' is a string or a list"),
    ],
)
def test_malformed_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, HEIGHT, WIDTH)


def test_union_of_none_is_empty():
    assert not union([], 2, 3).any()
    assert union([], 2, 3).shape == (2, 3)


def test_helper_writes_what_pycocotools_reads():
    code = coco_mask.frPyObjects(uncompressed_rle(BLOB), HEIGHT, WIDTH)
    assert np.array_equal(coco_mask.decode(code), BLOB)
