"""Answers in the forms of other programs, compared with the libraries that read them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from model.errors import UserError
from model.exports import FoundMask, components, instances_of, outer_outlines
from model.outputs import ChatAnswer, Segmentation

TOUCHING = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner are connected


def blobs(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    """A mask of several parts, some with holes."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    return ndimage.gaussian_filter(noise, 2.0) > 0.05


def logits_of(mask: np.ndarray, seed: int = 0) -> torch.Tensor:
    sizes = np.random.default_rng(seed).uniform(0.1, 4, mask.shape)
    return torch.from_numpy(np.where(mask, sizes, -sizes).astype(np.float32))


MASKS = [blobs(1), np.zeros((40, 60), dtype=bool), blobs(2)]
ANSWER = Segmentation(
    names=("dog", "cat", "sky", "tree"),
    present=[True, False, True, True],
    probabilities=[0.9, 0.2, 0.6, 0.75],
    masks=torch.stack([logits_of(mask) for mask in MASKS]),
    num_passes=1,
)
IN_WORDS = ChatAnswer(
    text="The dog [SEG] and [SEG], no cat [NEG].",
    masks=ANSWER.masks[[0, 2]],
    token_ids=[],
    mentions=(("The dog", True), ("", True), ("no cat", False)),
)


@pytest.mark.parametrize("seed", range(4))
def test_instances_are_the_components_of_scipy_the_largest_first(seed):
    mask = blobs(seed)
    labels, count = ndimage.label(mask, structure=TOUCHING)
    parts = components(mask)
    assert len(parts) == count > 2
    areas = [int(part.sum()) for part in parts]
    assert areas == sorted(areas, reverse=True)
    assert {part.tobytes() for part in parts} == {(labels == k).tobytes() for k in range(1, count + 1)}
    least = areas[1]
    assert len(components(mask, least)) == sum(area >= least for area in areas)


def test_an_instance_has_the_score_of_its_own_pixels():
    parts = instances_of(ANSWER)
    assert len(parts) == sum(len(components(mask)) for mask in MASKS)
    for part in parts:
        row = ("dog", "sky", "tree").index(part.label)
        inside = ANSWER.masks[row].numpy()[part.pixels].astype(np.float64)
        expected = (0.9, 0.6, 0.75)[row] * np.mean(1 / (1 + np.exp(-inside)))
        assert part.score == pytest.approx(expected, abs=1e-6)
        assert part.probability == (0.9, 0.6, 0.75)[row]
    assert len({part.score for part in parts}) > 3, "not that of the whole mask"


def test_instances_are_those_of_the_model_where_it_tells_objects_apart():
    assert ANSWER.instance_source == "components"
    left, right = np.zeros((40, 60), dtype=bool), np.zeros((40, 60), dtype=bool)
    left[:10, :30], right[:10, 30:] = True, True  # they touch: connected parts would be one
    own = tuple(
        FoundMask(label="dog", pixels=pixels, probability=0.9, score=score)
        for pixels, score in ((left, 0.8), (right, 0.7), (np.zeros_like(left), 0.1))
    )
    told_apart = replace(ANSWER, instances=own)
    assert told_apart.instance_source == "model"
    assert instances_of(told_apart) == list(own[:2]), "one without pixels is none"
    assert told_apart.found(instances=True, min_area=301) == []
    assert [entry["score"] for entry in told_apart.to_coco(instances=True)["annotations"]] == [0.8, 0.7]
    assert len(told_apart.found()) == 3


def test_more_parts_than_fit_into_memory_are_refused_before_they_are_made(monkeypatch):
    areas = sorted(mask.area for mask in instances_of(ANSWER))
    count = len(areas)
    monkeypatch.setattr("model.exports.MAX_INSTANCE_PIXELS", count * 40 * 60)
    assert len(instances_of(ANSWER)) == count
    monkeypatch.setattr("model.exports.MAX_INSTANCE_PIXELS", (count - 1) * 40 * 60)
    with pytest.raises(UserError, match="image of 40 x 60 pixels are too many; leave out the small ones"):
        instances_of(ANSWER)
    assert 0 < len(instances_of(ANSWER, areas[-2])) < count


def test_no_pixels_are_no_instances():
    assert components(np.zeros((4, 5), dtype=bool)) == []
    assert outer_outlines(np.zeros((4, 5), dtype=bool)) == []


@pytest.mark.parametrize(
    "mask",
    [*(blobs(seed) for seed in range(4)), np.eye(6, dtype=bool), np.ones((1, 1), dtype=bool),
     np.random.default_rng(5).random((12, 17)) > 0.5],
)  # fmt: skip
def test_polygons_are_rasterized_to_the_mask_with_its_holes_filled(mask):
    outlines = outer_outlines(mask)
    codes = coco_mask.frPyObjects(outlines, *mask.shape)
    drawn = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
    # A hole is what cannot be left through the sides of pixels.
    assert np.array_equal(drawn, ndimage.binary_fill_holes(mask))


def test_boxes_areas_and_run_lengths_are_those_of_pycocotools():
    for mask, found in zip(MASKS, ANSWER.found(), strict=True):
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert list(found.box) == coco_mask.toBbox(code).tolist()
        assert found.area == coco_mask.area(code)
        assert np.array_equal(coco_mask.decode(found.run_lengths), mask)


def test_a_score_is_the_probability_of_class_and_pixels():
    for found, logits, probability in zip(ANSWER.found(), ANSWER.masks, (0.9, 0.6, 0.75), strict=True):
        inside = logits[logits > 0].double().sigmoid().numpy()
        expected = probability * inside.mean() if inside.size else 0
        assert found.probability == probability
        assert found.score == pytest.approx(expected, abs=1e-6)
    for found, logits in zip(IN_WORDS.found(), IN_WORDS.masks, strict=True):
        assert found.probability is None
        assert found.score == pytest.approx(float(logits[logits > 0].sigmoid().mean()), abs=1e-6)


@pytest.mark.parametrize("instances", [False, True])
def test_a_coco_file_is_read_by_pycocotools(instances, tmp_path):
    content = ANSWER.to_coco(image_id=7, file_name="a.jpg", instances=instances, min_area=20 * instances)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "a.json"))
        results = coco.loadRes(content["annotations"])
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["dog", "cat", "sky", "tree"]
    assert coco.loadImgs(7)[0]["file_name"] == "a.jpg"
    for name, mask in zip(("dog", "sky", "tree"), MASKS, strict=True):
        annotations = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=[name])))
        drawn = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
        if not instances:
            assert np.array_equal(drawn[0], mask)
            continue
        assert [part.tobytes() for part in drawn] == [part.tobytes() for part in components(mask, 20)]
    assert len(results.getAnnIds()) == len(content["annotations"])


def test_categories_of_ones_own_are_used_and_must_be_complete():
    numbers = {"tree": 4, "dog": 12, "sky": 1}
    content = ANSWER.to_coco(category_ids=numbers)
    assert [entry["category_id"] for entry in content["annotations"]] == [12, 1, 4]
    with pytest.raises(UserError, match="no number for sky, tree"):
        ANSWER.to_coco(category_ids={"dog": 1})


def test_images_and_pipeline_entries_have_the_mask_in_white():
    for images in (ANSWER.to_pil(), [entry["mask"] for entry in ANSWER.to_pipeline()]):
        for image, mask in zip(images, MASKS, strict=True):
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), mask * np.uint8(255))
    assert [entry["label"] for entry in ANSWER.to_pipeline()] == ["dog", "sky", "tree"]
    assert [entry["label"] for entry in IN_WORDS.to_pipeline()] == ["The dog", "object"]


def test_supervision_takes_the_answer():
    supervision = pytest.importorskip("supervision")
    found = ANSWER.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found["class_name"].tolist() == ["dog", "sky", "tree"]
    assert found.class_id.tolist() == [0, 2, 3]
    assert np.array_equal(found.mask, np.stack(MASKS))
    corners = supervision.mask_to_xyxy(found.mask[[0, 2]], coordinate_convention="exclusive")
    assert np.array_equal(found.xyxy[[0, 2]], corners)
    assert found.confidence == pytest.approx([mask.score for mask in ANSWER.found()])
    parts = ANSWER.to_supervision(instances=True)
    assert len(parts) == sum(len(components(mask)) for mask in MASKS)
    scene = np.zeros((40, 60, 3), dtype=np.uint8)
    assert supervision.MaskAnnotator().annotate(scene, parts).any()
    nothing = Segmentation(
        names=("dog",), present=[False], probabilities=[0.0], masks=torch.zeros(0, 4, 5), num_passes=1
    )
    assert len(nothing.to_supervision()) == 0


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        ANSWER.to_supervision()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"min_area": 5}, "needs instances"), ({"min_area": -1, "instances": True}, "at least 0; got -1")],
)
def test_an_area_that_means_nothing_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ANSWER.found(**options)
