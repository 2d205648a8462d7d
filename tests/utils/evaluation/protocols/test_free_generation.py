"""Complex queries answered freely: mentions are matched to classes, or reported as hallucinations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.utils.evaluation.protocols.test_protocols import (
    CLASSES,
    LISA,
    Processor,
    TalkingModel,
    query,
    results,
    sample_of,
)
from utils.common.label_values import IGNORE, NOTHING, UNCLAIMED
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import SemanticProtocol


def test_free_answers_are_matched_merged_and_their_inventions_reported():
    upper, lower = np.array([[1.0, 1.0], [-1, -1]]), np.array([[-1.0, -1.0], [2, 2]])
    text = "sky [SEG], trafic light [SEG], unicorn [SEG], Sky [SEG], dog [NEG]."
    left = np.array([[5.0, -1.0], [-1, -1]])
    model = TalkingModel({query(*CLASSES): (text, [upper, lower, lower * 9, left])})
    label = [[0, 0], [3, 3]]
    predictions, sections, table = results(model, [sample_of(label)] * 2, free_generation=True)
    assert predictions[0].labels.tolist() == label
    assert sections["semantic"]["miou"] == 1.0
    names = {"mentions": 10, "exact": 6, "near": 2, "repeated": 2, "hallucinated": 2, "unanswered": 2}
    assert sections["free_names"] == {**names, "hallucination_rate": pytest.approx(1 / 5)}
    assert sections["hallucinated_names"] == {"unicorn": 2}
    assert "map" not in sections["presence"]
    assert "presence_ap" not in table["sky"]
    assert sections["presence"]["recall_all"] == 1.0


def test_free_queries_are_split_and_an_image_is_encoded_once_for_all_of_them():
    one = np.ones((1, 2))
    texts = {
        query("sky", "grass", "dog"): ("grass [SEG], traffic light [SEG].", [one, one]),
        query("traffic light"): ("traffic light [NEG].", []),
    }
    model = TalkingModel(texts)
    samples = [sample_of([[1, 1]]), sample_of([[1, 2]])]
    predictions, sections, _ = results(
        model, samples, free_generation=True, classes_per_query=3, val_batch_size=2
    )
    assert model.options == [{"images": 2, "max_new_tokens": 64}]
    assert [p.answered_present.tolist() for p in predictions] == [[1], [1]]
    assert sections["hallucinated_names"] == {"traffic light": 2}  # not asked in that query


def test_the_score_of_an_image_is_the_mean_over_what_it_shows_or_was_said_to_show():
    model = TalkingModel(
        probabilities={"grass": 0.9}
    )  # everywhere: right for 1 of 4 pixels, nothing for the sky
    protocol = SemanticProtocol(EvaluationSettings(), CLASSES)
    samples = [sample_of([[0, 0], [1, NOTHING]]), sample_of([[IGNORE, IGNORE]])]
    predictions = protocol.predict(model, Processor(), samples)
    scores = [protocol.score(protocol.record(*pair)) for pair in zip(samples, predictions, strict=True)]
    assert scores[0] == pytest.approx((1 / 4 + 0) / 2)
    assert math.isnan(scores[1])


def test_many_free_queries_take_several_passes_and_stay_with_their_images():
    names = CLASSES
    texts = {query(name): (f"{name} [SEG].", [np.full((1, 2), float(k + 1))]) for k, name in enumerate(names)}
    model = TalkingModel(texts)
    samples = [sample_of([[k, k]]) for k in range(3)]
    settings = {"free_generation": True, "classes_per_query": 1, "oracle_classes": False}
    predictions, _, _ = results(model, samples, **settings)  # 12 queries, 8 a pass
    assert [call["images"] for call in model.options] == [2, 1]
    assert all((p.labels == 3).all() for p in predictions)  # the highest logit
    oracle, _, _ = results(model, samples, **{**settings, "oracle_classes": True})
    assert [p.answered_present.tolist() for p in oracle] == [[0], [1], [2]]


def test_a_model_without_neg_is_asked_freely_and_its_one_class_answers_are_of_that_class():
    mask = np.array([[1.0, -1.0]])
    texts = {query(name, format=LISA): ("Sure, it is [SEG].", [mask]) for name in ("sky", "dog")}
    texts |= {query(name, format=LISA): ("I see none.", []) for name in ("grass", "traffic light")}
    predictions, sections, _ = results(TalkingModel(texts), [sample_of([[0, 2]])], LISA, classes_per_query=1)
    assert predictions[0].answered_present.tolist() == [0, 2]
    assert predictions[0].labels.tolist() == [[0, UNCLAIMED]]
    assert sections["free_names"]["hallucinated"] == 0
    protocol = EvaluationSettings(classes_per_query=1).protocol(constrained=LISA.answers_every_class)
    assert protocol["complex_queries"] == "generated"


@pytest.mark.parametrize("settings", [{"presence_threshold": 0.5}, {"rethreshold": 0.5}, {"calibrate": True}])
def test_what_needs_probabilities_is_refused_to_a_model_without_neg_and_to_free_generation(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"{name} needs .* no token for absent classes \(lisa format\)"):
        results(TalkingModel(), [sample_of([[0, 2]])], LISA, **settings)
    with pytest.raises(ValueError, match=f"{name} needs probabilities, and free_generation gives none"):
        EvaluationSettings(free_generation=True, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rethreshold": -0.1}, "rethreshold must be in 0 to 1"),
        ({"match_distance": 1.1}, "match_distance must be in 0 to 1"),
        ({"presence_threshold": 0.4, "rethreshold": 0.4}, "give one of them"),
        ({"calibrate": True, "oracle_classes": True}, "leave oracle_classes out"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**settings)


def test_the_report_names_how_it_was_asked():
    plain = EvaluationSettings().protocol(constrained=True)
    assert plain["answers"] == "generated"
    assert plain["complex_queries"] == "constrained"
    assert plain["classes_asked"] == "all"
    assert plain["match_distance"] is None
    other = EvaluationSettings(
        teacher_forced=True, oracle_classes=True, free_generation=True, classes_per_query=7
    ).protocol(constrained=True)
    assert other["answers"] == "teacher_forced"
    assert other["complex_queries"] == "generated"
    assert other["classes_asked"] == "present (oracle)"
    assert other["classes_per_query"] == 7
    assert other["match_distance"] == 0.2
