import pickle

import numpy as np
import pytest

from model.text.conversation import Conversation
from model.text.special_tokens import SEG, Special
from tests.utils.data.layouts import HEIGHT, WIDTH, seeded_image
from utils.data.types import ReferringSample, Sample, SemanticSample, UnusableItemError

ONE_SEG = Conversation.of("Where is it?", ("It is ", Special(SEG), "."))


def masks(number):
    return np.zeros((number, HEIGHT, WIDTH), dtype=np.uint8)


def test_segs_and_masks_must_be_as_many():
    Sample(image=seeded_image(0), conversations=(ONE_SEG, ONE_SEG), masks=masks(2), source="a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: 1 \[SEG\] in the answers but 2 masks"):
        Sample(image=seeded_image(0), conversations=(ONE_SEG,), masks=masks(2), source="a.jpg")


@pytest.mark.parametrize(
    ("image", "mask_stack", "message"),
    [
        (seeded_image(0).astype(np.float32), masks(1), "image must be"),
        (seeded_image(0)[..., 0], masks(1), "image must be"),
        (seeded_image(0), masks(1).astype(bool), "masks must be"),
        (seeded_image(0), masks(1)[:, :5], r"masks must be \(num, 24, 32\) uint8, got \(1, 5, 32\)"),
        (seeded_image(0), masks(1)[0], "masks must be"),
    ],
)
def test_shapes_are_checked_where_a_sample_is_made(image, mask_stack, message):
    with pytest.raises(ValueError, match=message):
        Sample(image=image, conversations=(ONE_SEG,), masks=mask_stack, source="a.jpg")


def test_evaluation_samples_are_checked_too():
    with pytest.raises(ValueError, match="label"):
        SemanticSample(
            image=seeded_image(0), label=np.zeros((3, 3), np.uint16), classes=("a",), source="a.jpg"
        )
    with pytest.raises(ValueError, match=r"label must be \(24, 32\) uint16, got \(24, 32\) uint8"):
        SemanticSample(image=seeded_image(0), label=masks(1)[0], classes=("a",), source="a.jpg")
    with pytest.raises(ValueError, match="2 expressions, 1 masks, 1 no-target"):
        ReferringSample(
            image=seeded_image(0), expressions=("a", "b"), masks=masks(1), no_target=(False,), source="a.jpg"
        )
    with pytest.raises(ValueError, match="at least one conversation"):
        Sample(image=seeded_image(0), conversations=(), masks=masks(0), source="a.jpg")


def test_unusable_item_errors_cross_process_borders():
    problem = pickle.loads(pickle.dumps(UnusableItemError("a.png", "empty")))
    assert (problem.path, problem.reason, str(problem)) == ("a.png", "empty", "a.png: empty")
