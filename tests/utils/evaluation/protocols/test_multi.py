"""Questions about several targets, with a model that answers as the test tells it to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.text.sequence import reasoning_query
from tests.utils.evaluation.told_model import (
    FakeProcessor,
    ListDataset,
    ToldModel,
    image_of,
    mask_logits,
    numbers_of,
)
from utils.data.types import MultiTargetSample
from utils.evaluation.dataset_run import Outputs
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import MultiTargetProtocol
from utils.evaluation.serialization import from_json, to_json


def world(model):
    """Two questions about one image: both targets found in another order, and one of two; one without any mask."""
    image, other = image_of(1, 4, 10), image_of(2, 4, 10)
    left, right = np.zeros((4, 10), dtype=np.uint8), np.zeros((4, 10), dtype=np.uint8)
    left[:, :5], right[:, 5:] = 1, 1

    def tell(image, question, text, masks):
        stacked = torch.stack([mask_logits(m) for m in masks]) if masks else torch.zeros(0, 4, 10)
        model.answers[image.tobytes(), str(reasoning_query(question, True)[0])] = (text, stacked)

    tell(image, "Both?", "The right [SEG] and the left [SEG].", [right, left])
    tell(image, "Again?", "It is [SEG].", [right])
    tell(other, "None?", "I do not know.", [])
    both = np.stack([left, right])
    return [
        MultiTargetSample(image=image, questions=("Both?", "Again?"), masks=(both, both), source="a"),
        MultiTargetSample(image=other, questions=("None?",), masks=(both[:1],), source="b"),
    ]


def run(model, samples, **settings):
    report = evaluate_datasets(
        model, FakeProcessor(), {"MUSE|val": ListDataset(samples)}, EvaluationSettings(**settings),
        show_progress=False, outputs=Outputs(num_shown=2),
    )  # fmt: skip
    return report.results[0]


def test_masks_are_matched_and_both_kinds_of_errors_count():
    model = ToldModel()
    result = run(model, world(model))
    numbers = result.sections["multi"]
    assert result.task == "multi"
    assert numbers["giou"] == pytest.approx((1 + 1 + 1 + 0 + 0) / (4 + 1))
    assert numbers["ciou"] == pytest.approx((20 + 20 + 20) / (20 * 5))
    assert numbers["count_accuracy"] == pytest.approx(1 / 3)
    assert (numbers["num_questions"], numbers["num_targets"]) == (3, 5)
    assert result.worst[0].source == "b"


def test_the_batch_size_changes_nothing():
    model = ToldModel()
    samples = world(model)
    assert numbers_of(run(model, samples)) == numbers_of(run(model, samples, val_batch_size=2))


def test_records_survive_the_disk():
    model = ToldModel()
    samples = world(model)
    protocol = MultiTargetProtocol(EvaluationSettings())
    with torch.no_grad():
        predictions = protocol.predict(model.eval(), FakeProcessor(), samples)
    records = [protocol.record(*pair) for pair in zip(samples, predictions, strict=True)]
    assert from_json(to_json(records)) == records


def test_questions_and_masks_are_as_many():
    image = image_of(1, 4, 10)
    with pytest.raises(ValueError, match="x: 2 questions, masks of 1"):
        MultiTargetSample(
            image=image, questions=("a", "b"), masks=(np.zeros((1, 4, 10), np.uint8),), source="x"
        )
