"""How complex queries are asked and read: oracle, thresholds, calibration, free generation, models without [NEG]."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.outputs import Segmentation
from model.text.format import SequenceFormat
from tests.told_answers import answer_of
from tests.utils.evaluation.told_model import absent_from
from utils.common.label_values import IGNORE, NOTHING, UNCLAIMED
from utils.data.types import ReasonSample, SemanticSample
from utils.evaluation.metrics import Overlap
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import ReasoningProtocol, ReasonRecord, SemanticProtocol, protocol_for

CLASSES = ("sky", "grass", "dog", "traffic light")
PAPER, LISA = SequenceFormat.named("paper"), SequenceFormat.named("lisa")


@dataclass
class Processor:
    format: SequenceFormat = PAPER


@dataclass
class TalkingModel:
    """Answers complex queries from a table of texts and masks; keeps what it was asked."""

    texts: dict[str, tuple[str, list[np.ndarray]]] = field(default_factory=dict)  # query -> text, masks
    probabilities: dict[str, float] = field(default_factory=dict)  # of being present, 0 unless given
    asked: list[tuple[str, ...]] = field(default_factory=list)
    options: list[dict] = field(default_factory=list)
    config = SimpleNamespace(num_all_classes=80, sequence_format=None, prompt=None)

    def encode_batch(self, images, *, processor):
        return images

    def generate_batch(self, images, conversations, *, image_of_row, processor, max_new_tokens):
        self.options.append({"images": len(images), "max_new_tokens": max_new_tokens})
        answers = []
        for owner, conversation in zip(image_of_row, conversations, strict=True):
            text, masks = self.texts[str(conversation.turns[0])]
            stacked = torch.tensor(np.array(masks), dtype=torch.float32).reshape(-1, *images[owner].shape[:2])
            answers.append(answer_of(text, stacked, processor.format))
        return answers

    def segment_batch(self, images, classes, *, processor, **options):
        self.options.append(options)
        answers = []
        for image, names in zip(images, classes, strict=True):
            self.asked.append(tuple(names))
            chances = [self.probabilities.get(name, 0.0) for name in names]
            present = [chance >= (options["rethreshold"] or 0.5) for chance in chances]
            masks = torch.ones(sum(present), *image.shape[:2])
            answers.append(
                Segmentation(
                    names=tuple(names), present=present, probabilities=chances, masks=masks, num_passes=1
                )
            )
        return answers


def sample_of(label: list[list[int]]) -> SemanticSample:
    ids = np.array(label, dtype=np.uint16)
    return SemanticSample(
        image=np.zeros((*ids.shape, 3), np.uint8),
        label=ids,
        classes=CLASSES,
        source="made.png",
        absent=absent_from(ids, len(CLASSES)),
    )


def results(model, samples, format: SequenceFormat = PAPER, **settings):
    protocol = SemanticProtocol(EvaluationSettings(**settings), CLASSES)
    predictions = protocol.predict(model, Processor(format), samples)
    records = [protocol.record(*pair) for pair in zip(samples, predictions, strict=True)]
    return predictions, protocol.sections(records), protocol.class_table(records)


def query(*names: str, format: SequenceFormat = PAPER) -> str:
    return str(format.query(names)[0])


# ------------------------------------------------------------------------------------------- oracle


def test_an_oracle_asks_each_image_only_for_what_it_shows():
    model = TalkingModel(probabilities={"sky": 0.9, "dog": 0.2})
    samples = [
        sample_of([[0, 0, 2, IGNORE]]),
        sample_of([[NOTHING, IGNORE, NOTHING, NOTHING]]),
        sample_of([[3, 3, 0, 0]]),
    ]
    predictions, sections, _ = results(model, samples, oracle_classes=True)
    assert model.asked == [("sky", "dog"), ("sky", "traffic light")]
    assert (predictions[1].labels == UNCLAIMED).all()
    assert sections["presence"] == {"recall_all": 0.5, "num_pairs_all": 4}
    assert sections["semantic"]["pixel_accuracy"] == pytest.approx(4 / 7)


def test_an_oracle_with_nothing_to_ask_does_not_call_the_model():
    model = TalkingModel()
    _, sections, _ = results(model, [sample_of([[NOTHING, IGNORE]])], oracle_classes=True)
    assert model.options == []
    assert math.isnan(sections["semantic"]["miou"])


# --------------------------------------------------------------------------- thresholds, calibration


def test_thresholds_reach_the_model_each_by_its_name():
    model = TalkingModel(probabilities={"sky": 0.6, "dog": 0.2})
    results(model, [sample_of([[0, 2]])], presence_threshold=0.3, classes_per_query=2)
    assert model.options == [{"presence_threshold": 0.3, "rethreshold": None, "classes_per_query": 2}]
    predictions, _, _ = results(model, [sample_of([[0, 2]])], rethreshold=0.1)
    assert predictions[0].answered_present.tolist() == [0, 2]


def test_calibration_finds_the_threshold_that_presence_then_reaches():
    # Pairs by probability: dog 0.4 true, sky 0.3 true, grass 0.25 false; the traffic light 0 is true once.
    model = TalkingModel(probabilities={"dog": 0.4, "sky": 0.3, "grass": 0.25})
    samples = [sample_of([[0, 2]]), sample_of([[0, 2]]), sample_of([[3, 2]])]
    _, sections, _ = results(model, samples, calibrate=True)
    # From 0.3 on: 5 of 6 said are true, of 6 true in all -> F1 10 / 12; as decoded nothing is present.
    calibration = sections["calibration"]
    assert calibration["threshold"] == 0.3
    assert calibration["f1"] == pytest.approx(10 / 12)
    assert calibration["precision"] == calibration["recall"] == pytest.approx(5 / 6)
    assert calibration["f1_as_decoded"] == 0
    assert calibration["num_pairs"] == 12
    _, again, _ = results(model, samples, rethreshold=calibration["threshold"])
    assert again["presence"]["f1_all"] == pytest.approx(calibration["f1"])


def test_presence_of_every_class_equals_scikit_learn():
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    class Unsure(TalkingModel):
        def segment_batch(self, images, classes, **options):
            self.probabilities = dict(zip(CLASSES, rng.random(4).round(1), strict=True))
            return super().segment_batch(images, classes, **options)

    rng = np.random.default_rng(0)
    protocol = SemanticProtocol(EvaluationSettings(), CLASSES)
    samples = [sample_of(rng.integers(0, 4, (1, 2)).tolist()) for _ in range(25)]
    predictions = [protocol.predict(Unsure(), Processor(), [sample])[0] for sample in samples]
    records = [protocol.record(*pair) for pair in zip(samples, predictions, strict=True)]
    table, presence = protocol.class_table(records), protocol.sections(records)["presence"]
    truth = np.array([[k in sample.label for k in range(4)] for sample in samples])
    chances = np.array([prediction.probabilities for prediction in predictions])
    expected = average_precision_score(truth, chances, average=None)
    assert [table[name]["presence_ap"] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-12)
    assert presence["map"] == pytest.approx(expected.mean(), abs=1e-12)
    columns = precision_recall_fscore_support(truth, chances >= 0.5)
    for column, values in zip(("precision", "recall", "f1"), columns, strict=False):
        ours = [table[name][f"presence_{column}"] for name in CLASSES]
        assert ours == pytest.approx(values.tolist(), abs=1e-12), column
    assert [table[name]["num_images"] for name in CLASSES] == truth.sum(axis=0).tolist()
    micro = precision_recall_fscore_support(truth, chances >= 0.5, average="micro")
    assert presence["f1_all"] == pytest.approx(micro[2], abs=1e-12)


# ---------------------------------------------------------------------------------------- reasoning


def test_short_and_long_questions_are_also_counted_apart():
    protocol = ReasoningProtocol(EvaluationSettings())
    records = [
        ReasonRecord(overlap=Overlap(intersection=i, prediction=10, target=i), is_sentence=is_sentence)
        for i, is_sentence in ((10, True), (5, True), (2, False))
    ]
    sections = protocol.sections(records)
    assert sections["reasoning"]["giou"] == pytest.approx((1 + 0.5 + 0.2) / 3)
    assert sections["reasoning_long"]["giou"] == pytest.approx(0.75)
    assert sections["reasoning_long"]["ciou"] == pytest.approx(15 / 20)
    assert sections["reasoning_short"]["giou"] == pytest.approx(0.2)
    assert [sections[name]["num_questions"] for name in sections] == [3, 1, 2]
    assert sections["reasoning"]["giou_low"] <= sections["reasoning"]["giou"]
    assert list(protocol.sections(records[:2])) == ["reasoning"]
    assert [protocol.score(record) for record in records] == [1.0, 0.5, 0.2]


def test_the_kind_of_a_sample_decides_its_protocol():
    empty = np.zeros((2, 2), np.uint8)
    reason = ReasonSample(
        image=np.zeros((2, 2, 3), np.uint8),
        question="what?",
        is_sentence=True,
        mask=empty,
        ignore=empty.astype(bool),
        source="",
    )
    assert isinstance(protocol_for(reason, EvaluationSettings(), has_no_target=False), ReasoningProtocol)
    assert isinstance(
        protocol_for(sample_of([[0]]), EvaluationSettings(), has_no_target=False), SemanticProtocol
    )


def test_records_of_free_and_constrained_answers_survive_the_way_to_a_file():
    from utils.evaluation.serialization import from_json, to_json

    text = "sky [SEG], unicorn [NEG]."
    model = TalkingModel({query(*CLASSES): (text, [np.ones((1, 2))])}, probabilities={"sky": 0.1})
    sample = sample_of([[0, 2]])
    for settings in ({}, {"free_generation": True}):
        protocol = SemanticProtocol(EvaluationSettings(**settings), CLASSES)
        record = protocol.record(sample, protocol.predict(model, Processor(), [sample])[0])
        again = from_json(json.loads(json.dumps(to_json(record))))
        assert type(again) is type(record)
        assert again.names == record.names
        assert protocol.sections([again]).keys() == protocol.sections([record]).keys()
        assert protocol.class_table([again]).keys() == protocol.class_table([record]).keys()
        np.testing.assert_array_equal(protocol.confusion([again]), protocol.confusion([record]))
