"""Polygons as tools write them, and numbers that would crash a decoder."""

import math

import numpy as np
import pytest

from tests.utils.data.layouts import HEIGHT, WIDTH, box_polygon, compressed_rle
from utils.data.datasets.own import decode_own_mask
from utils.data.labelme import draw_shapes, read_shapes
from utils.data.masks import decode_segmentation
from utils.data.polygons import FLAT, MAX_SIDES, OBJECTS, PAIRS, check_coordinates, form_of

BOX, OTHER = box_polygon(2, 3, 10, 8), box_polygon(20, 3, 4, 4)
LIMIT = MAX_SIDES * WIDTH


def paired(polygon):
    return [list(pair) for pair in zip(polygon[::2], polygon[1::2], strict=True)]


@pytest.mark.parametrize(
    "number", [1e8, -1e9, 1e300, -1e300, math.nan, math.inf, -math.inf, 10**400, 2**31, LIMIT + 1, -LIMIT - 1]
)
@pytest.mark.parametrize("place", [0, 1, 6])
def test_a_number_that_no_image_has_is_refused_before_a_decoder_sees_it(number, place):
    polygon = [*BOX]
    polygon[place] = number
    for decode in (decode_segmentation, decode_own_mask):
        for written in ([polygon], polygon, [OTHER, polygon], [paired(polygon)]):
            with pytest.raises(ValueError, match=r"a coordinate is|finite numbers only"):
                decode(written, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"shape 0 \('target'\): (a coordinate is|a polygon holds finite)"):
        draw_shapes(read_shapes([{"label": "target", "points": paired(polygon)}]), HEIGHT, WIDTH)


def test_numbers_up_to_ten_sides_away_are_cut_at_the_border():
    around = [-LIMIT, -LIMIT, LIMIT, -LIMIT, LIMIT, LIMIT, -LIMIT, LIMIT]
    assert decode_segmentation([around], HEIGHT, WIDTH).all()
    assert decode_own_mask([around], HEIGHT, WIDTH).all()


def test_an_outline_that_takes_all_memory_is_refused():
    zigzag = [number for k in range(20_000) for number in ((-1) ** k * LIMIT, k % HEIGHT)]
    with pytest.raises(ValueError, match=r"an outline of \d+ pixels; it may have \d+"):
        check_coordinates(zigzag, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "code",
    [
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 1, 2]},
        {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]},
        {"size": [HEIGHT, WIDTH], "counts": [2**40]},
        {"size": [HEIGHT, WIDTH], "counts": [math.nan]},
        {"size": [HEIGHT, WIDTH], "counts": [[1]]},
        {"size": [HEIGHT, WIDTH], "counts": "~~~~"},
        {"size": [HEIGHT, WIDTH], "counts": "\ud800"},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": None},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": "24", "counts": [768]},
        {"size": [HEIGHT], "counts": [768]},
        {"counts": [768]},
        {},
    ],
)
def test_malformed_run_lengths_are_refused_before_a_decoder_sees_them(code):
    for written in (code, [code], [BOX, code]):
        with pytest.raises(ValueError, match=r"run|count"):
            decode_segmentation(written, HEIGHT, WIDTH)


def test_whole_numbers_may_be_written_as_fractions_in_run_lengths():
    code = {"size": [float(HEIGHT), float(WIDTH)], "counts": [3.0, 5.0, HEIGHT * WIDTH - 8.0]}
    assert decode_segmentation(code, HEIGHT, WIDTH).sum() == 5


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ([BOX], ""),
        (BOX, FLAT),
        (paired(BOX), PAIRS),
        ([paired(BOX)], PAIRS),
        ([{"x": x, "y": y} for x, y in paired(BOX)], OBJECTS),
        ([[{"x": x, "y": y} for x, y in paired(BOX)]], OBJECTS),
    ],
)
def test_a_polygon_is_the_same_in_every_form(written, form):
    assert np.array_equal(
        decode_segmentation(written, HEIGHT, WIDTH), decode_segmentation([BOX], HEIGHT, WIDTH)
    )
    assert np.array_equal(decode_own_mask(written, HEIGHT, WIDTH), decode_segmentation([BOX], HEIGHT, WIDTH))
    assert form_of(written) == form


def test_several_polygons_may_be_paired_and_lie_beside_run_lengths():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[15:20, 3:9] = 1
    expected = decode_segmentation([BOX, OTHER], HEIGHT, WIDTH) | mask
    for written in (
        [BOX, paired(OTHER), compressed_rle(mask)],
        [paired(BOX), paired(OTHER), compressed_rle(mask)],
    ):
        assert np.array_equal(decode_own_mask(written, HEIGHT, WIDTH), expected)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([[*BOX, "7", 3]], "a polygon holds finite numbers only, got '7'"),
        ([[*BOX, True, 3]], "a polygon holds finite numbers only, got True"),
        ([[{"x": 1}, {"x": 3}]], "a polygon holds finite numbers only, got {'x': 1}"),
        ([{"x": "1", "y": 2}, {"x": 3, "y": 4}], "a polygon holds finite numbers only, got '1'"),
        ([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], r"a point is a pair \[x, y\], got \[1, 2, 3\]"),
        ([[[[1, 2], [3, 4], [5, 6]]]], r"a point is a pair \[x, y\], got \[\[1, 2\]"),
        ([BOX, 7], "a segmentation is a list of polygons, got 7"),
        ([[0.1, 0.2, 0.9, 0.2, 0.5, 1]], r"between 0 and 1: .* not pixels; multiply x by the width \(32\)"),
        ([0.1, 0.2, 0.9, 0.2, 0.5, 1], "between 0 and 1"),
        ([[[0, 0], [1, 0], [1, 1]]], "between 0 and 1"),
        ([[0.1, 0.2, 1.004, 0.2, 0.5, 0.9]], "between 0 and 1"),
        ([[-0.002, 0.2, 0.9, 0.2, 0.5, 1]], "between 0 and 1"),
    ],
)
def test_what_is_ambiguous_is_one_short_line(written, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_own_mask(written, HEIGHT, WIDTH)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "stray", [[32, 10, 33, 10, 33, 12, 32, 12], [-3, 4, -1, 4, -1, 6], [5, 5, 7, 5], [9, 9], []]
)
def test_a_stray_part_is_left_out_beside_a_good_one(stray):
    told = []
    mask = decode_own_mask([BOX, stray], HEIGHT, WIDTH, on_stray=lambda: told.append(stray))
    assert np.array_equal(mask, decode_segmentation([BOX], HEIGHT, WIDTH))
    assert told == [stray]
    with pytest.raises(ValueError, match="a polygon"):
        decode_own_mask([stray], HEIGHT, WIDTH)


@pytest.mark.parametrize("part", [box_polygon(40, 3, 9, 9), box_polygon(2, 60, 9, 9), [2, 2, 10, 10]])
def test_a_part_that_is_misplaced_is_an_error_also_beside_a_good_one(part):
    with pytest.raises(ValueError, match=r"lies outside the image|a polygon of 2 points"):
        decode_own_mask([BOX, part], HEIGHT, WIDTH)
