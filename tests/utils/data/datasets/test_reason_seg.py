import numpy as np
import pytest

from model.text.special_tokens import SEG
from tests.utils.data.layouts import HEIGHT, WIDTH, drawn, save, save_json, seeded_image, write_reason_seg
from utils.data.datasets.reason_seg import ReasonSeg
from utils.data.labelme import IGNORED, draw_shapes, read_shapes
from utils.data.types import Recipe, UnusableItemError

BIG = [[2, 2], [28, 2], [28, 20], [2, 20]]
SMALL = [[8, 6], [16, 6], [16, 12], [8, 12]]
TINY = [[10, 8], [12, 8], [12, 10], [10, 10]]


def shape(label, points):
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points}


def annotation(*texts, is_sentence=True, shapes=None):
    shapes = [shape("target", SMALL)] if shapes is None else shapes
    return {"text": list(texts), "is_sentence": is_sentence, "shapes": shapes}


def test_evaluation_asks_the_first_question_and_leaves_ignored_pixels_out(tmp_path):
    shapes = [
        shape("target", TINY),
        shape("Ignore_this", SMALL),
        shape("target", BIG),
        shape("flag", [[0, 0], [31, 23], [0, 23]]),
    ]
    write_reason_seg(tmp_path, "val", "a", annotation("what?", "who?", shapes=shapes))
    write_reason_seg(tmp_path, "val", "b", annotation("the toy", is_sentence=False))
    first, second = ReasonSeg(tmp_path, "val")
    assert (first.question, first.is_sentence) == ("what?", True)
    assert (second.question, second.is_sentence) == ("the toy", False)
    assert np.array_equal(first.ignore, (drawn(SMALL) == 1) & (drawn(TINY) == 0))
    assert np.array_equal(first.mask, (drawn(BIG) == 1) & ~first.ignore)
    assert np.array_equal(second.mask, drawn(SMALL))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_small_polygons_lie_on_top_whatever_their_order(order):
    shapes = [shape("target", BIG), shape("ignore", SMALL), shape("target", TINY)]
    label = draw_shapes(read_shapes([shapes[k] for k in order]), HEIGHT, WIDTH)
    expected = np.where(drawn(SMALL) > drawn(TINY), IGNORED, drawn(BIG))
    assert np.array_equal(label, expected)


def test_outlines_belong_to_the_mask_and_polygons_may_leave_the_image():
    label = draw_shapes(
        read_shapes([shape("target", [[-10, -10], [5, -10], [5, 5], [-10, 5]])]), HEIGHT, WIDTH
    )
    assert label[:6, :6].all()
    assert label.sum() == 36
    assert not draw_shapes(
        read_shapes([shape("target", [[90, 90], [95, 90], [95, 95]])]), HEIGHT, WIDTH
    ).any()
    line = draw_shapes(read_shapes([shape("target", [[2, 3], [9, 3]])]), HEIGHT, WIDTH)
    assert line.sum() == 8


def test_training_takes_up_to_three_questions_with_the_same_mask(tmp_path, recipe):
    write_reason_seg(tmp_path, "train", "a", annotation("one?", "two?", "three?", "four?", "five?"))
    sample = ReasonSeg(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    asked = [str(conversation.turns[0]).split("?")[0] for conversation in sample.conversations]
    assert len(set(asked)) == 3
    assert len(sample.masks) == 3
    for mask in sample.masks:
        assert np.array_equal(mask, drawn(SMALL))


def test_phrases_are_put_into_a_question(tmp_path, recipe):
    write_reason_seg(tmp_path, "train", "a", annotation("the toy to kick", is_sentence=False))
    sample = ReasonSeg(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    assert "What is the toy to kick in this image?" in str(sample.conversations[0].turns[0])


def test_explained_images_are_answered_in_three_ways(tmp_path, recipe):
    write_reason_seg(tmp_path, "train", "a", annotation("why?", "how?"))
    entry = {"image": "a.jpg", "json": "a.json", "query": "why?", "outputs": "Because it is round."}
    save_json(tmp_path / "reason_seg/ReasonSeg/explanatory/train.json", [entry])
    dataset = ReasonSeg(tmp_path, "train")
    half = Recipe(format=recipe.format, explanatory=0.5)
    ways = set()
    for seed in range(40):
        sample = dataset.draw(np.random.default_rng(seed), half)
        answers = [conversation.answers[0] for conversation in sample.conversations]
        way = {(SEG in answer, "round" in answer) for answer in answers}
        assert len(way) == 1, "one way for all questions of a sample"
        ways |= way
        assert len(sample.masks) == (2 if SEG in answers[0] else 0)
    assert ways == {(True, True), (True, False), (False, True)}
    never = Recipe(format=recipe.format, explanatory=0)
    assert all(len(dataset.draw(np.random.default_rng(s), never).masks) == 2 for s in range(10))


def test_windows_code_page_is_read(tmp_path):
    write_reason_seg(tmp_path, "test", "a", annotation("what?"))
    path = tmp_path / "reason_seg/ReasonSeg/test/a.json"
    path.write_bytes(path.read_text().replace("what?", "the caf\xe9\x92s door?").encode("latin-1"))
    assert ReasonSeg(tmp_path, "test")[0].question == "the café\u2019s door?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"is_sentence": True, "shapes": []}, "no 'text' in it"),
        ({"text": ["a?"], "is_sentence": True}, "no 'shapes' in it"),
        (annotation(), "'text' must be a list of questions"),
        (annotation("a?", shapes=[]), "the mask is empty"),
        (annotation("a?", shapes=[shape("target", [[1, 2, 3]])]), "pairs of numbers"),
        (annotation("a?", shapes=[{"label": "target"}]), "'label' and 'points'"),
        (annotation("a?", shapes=[shape("target", [])]), "pairs of numbers"),
        ("no dictionary", "no 'text' in it"),
    ],
)
def test_unusable_annotations_are_named(tmp_path, recipe, content, message):
    write_reason_seg(tmp_path, "train", "a", content)
    with pytest.raises(UnusableItemError, match=message) as caught:
        ReasonSeg(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    assert caught.value.path.endswith("a.json")


def test_images_without_annotation_are_dropped_and_no_image_is_an_error(tmp_path):
    save(tmp_path / "reason_seg/ReasonSeg/val/a.jpg", seeded_image(0))
    with pytest.raises(FileNotFoundError, match=r"ReasonSeg\|val: no usable item.*1 dropped.*no a\.json"):
        ReasonSeg(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"ReasonSeg needs .*ReasonSeg/test.*holds val"):
        ReasonSeg(tmp_path, "test")


def test_targets_outside_of_the_image_are_an_error_and_none_is_said(tmp_path, caplog):
    for name, shapes in (("a", [shape("target", [[90, 90], [95, 90], [95, 95]])]), ("b", [])):
        write_reason_seg(tmp_path, "val", name, {"text": ["what?"], "is_sentence": True, "shapes": shapes})
    data = ReasonSeg(tmp_path, "val")
    with pytest.raises(
        ValueError, match="no target covers a pixel of the image, which is 32 wide and 24 high"
    ):
        data[0]
    assert not data[1].mask.any()
    assert "b.json: no shape marks a target" in caplog.text
