"""The protocols with a model that answers as the test tells it to; the numbers against slow references."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.text.sequence import reasoning_query, referring_query
from tests.utils.evaluation.told_model import (
    CLASSES,
    FakeProcessor,
    ToldModel,
    image_of,
    mask_logits,
    numbers_of,
    referring_world,
    semantic_world,
)
from utils.common.label_values import IGNORE, UNCLAIMED
from utils.data.types import ReasonSample, ReferringSample, VqaSample
from utils.evaluation.evaluate import evaluate_entries
from utils.evaluation.prompting import EvaluationSettings


def run(model, entry, **settings):
    settings = EvaluationSettings(**settings)
    report = evaluate_entries(model, FakeProcessor(), [entry], "unused", settings, show_progress=False)
    return report.results[0]


# ----------------------------------------------------------------------------------------- semantic


def test_semantic_numbers_equal_a_slow_reference_over_all_pixels(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 7)
    result = run(model, "ade20k", val_batch_size=3)

    truth = np.concatenate([sample.label.ravel() for sample in samples])
    predicted = np.concatenate([model.label_maps[sample.image.tobytes()].ravel() for sample in samples])
    judged = truth != IGNORE
    truth, predicted = truth[judged], predicted[judged]
    expected = {}
    for class_id, name in enumerate(CLASSES):
        union = ((truth == class_id) | (predicted == class_id)).sum()
        if union:
            expected[name] = ((truth == class_id) & (predicted == class_id)).sum() / union
    assert {name: row["iou"] for name, row in result.per_class.items() if name in expected} == pytest.approx(
        expected
    )
    assert all(math.isnan(row["iou"]) for name, row in result.per_class.items() if name not in expected)
    assert result.confusion[:-1].sum() == len(truth)
    assert result.sections["semantic"]["miou"] == pytest.approx(np.mean(list(expected.values())))
    assert result.sections["semantic"]["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    assert result.num_samples == 7
    assert len(result.sheet) == 7


def test_all_class_names_of_the_data_set_are_asked_in_its_order(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 2)
    run(model, "ade20k", classes_per_query=3, val_batch_size=2)
    assert model.calls == [{"images": 2, "classes": [list(CLASSES)] * 2, "classes_per_query": 3}]


def test_numbers_do_not_depend_on_the_batch_size_or_the_loader(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 5)
    one, three = run(model, "ade20k"), run(model, "ade20k", val_batch_size=3)
    assert numbers_of(one) == numbers_of(three)


def test_presence_asks_as_many_absent_classes_of_the_split_as_present_ones(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 6)
    for sample in samples:  # always "everything is here", among them the class that no image holds
        claims = np.arange(sample.label.size).reshape(sample.label.shape) % len(CLASSES)
        model.label_maps[sample.image.tobytes()] = claims
    presence = run(model, "ade20k").sections["presence"]
    assert presence["num_pairs"] == 6 * (3 + 3)
    assert presence["accuracy"] == pytest.approx(0.5)
    assert presence["recall"] == 1.0
    assert presence["num_pairs_all"] == 6 * len(CLASSES)
    assert presence["precision_all"] == pytest.approx(3 / 8)


def test_a_perfect_model_is_perfect(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 4)
    for sample in samples:
        model.label_maps[sample.image.tobytes()] = np.where(
            sample.label == IGNORE, UNCLAIMED, sample.label.astype(np.int32)
        )
    result = run(model, "ade20k")
    assert result.sections["semantic"]["miou"] == 1.0
    assert result.sections["presence"]["accuracy"] == 1.0


def test_a_model_that_finds_nothing_scores_zero_not_nan(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 3)
    for sample in samples:
        model.label_maps[sample.image.tobytes()] = np.full(sample.label.shape, UNCLAIMED)
    result = run(model, "ade20k")
    assert result.sections["semantic"]["miou"] == 0.0
    assert result.sections["presence"]["accuracy"] == pytest.approx(0.5)
    assert math.isnan(result.sections["presence"]["precision"])


# ------------------------------------------------------------------------------------ referring etc.


def test_referring_unites_the_masks_of_an_answer_and_counts_every_expression(datasets):
    model = ToldModel()
    datasets["refcoco|unc|val"] = referring_world(model)
    result = run(model, "refcoco|unc|val", val_batch_size=2)
    referring = result.sections["referring"]
    assert referring["num_expressions"] == 4
    assert referring["giou"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert referring["ciou"] == pytest.approx((40 + 0 + 20 + 0) / (40 + 20 + 40 + 20))
    for row, sample in zip(result.sheet, datasets["refcoco|unc|val"], strict=True):
        assert row.legend[1].name in sample.expressions


def test_an_image_is_encoded_once_for_all_its_expressions(datasets):
    model = ToldModel()
    datasets["refcoco|unc|val"] = referring_world(model)
    run(model, "refcoco|unc|val", val_batch_size=2)
    assert model.calls == [{"images": 2, "rows": 4}]


def test_many_expressions_of_an_image_are_asked_in_several_passes_and_answered_in_order(datasets):
    model = ToldModel()
    image = image_of(3, 4, 10)
    masks = (np.arange(40).reshape(1, 4, 10) == np.arange(20).reshape(20, 1, 1)).astype(np.uint8)
    expressions = tuple(f"pixel {number}" for number in range(20))
    for expression, mask in zip(expressions, masks, strict=True):
        query = str(referring_query(expression)[0])
        model.answers[image.tobytes(), query] = ("It is [SEG].", mask_logits(mask)[None])
    datasets["refcoco|unc|val"] = [
        ReferringSample(
            image=image, expressions=expressions, masks=masks, no_target=(False,) * 20, source="many"
        )
    ]
    result = run(model, "refcoco|unc|val")
    assert result.sections["referring"]["ciou"] == 1.0
    assert [call["rows"] for call in model.calls] == [8, 8, 4]


def test_grefcoco_counts_no_target_by_both_rules(datasets):
    model = ToldModel()
    datasets["grefcoco|unc|val"] = referring_world(model)
    sections = run(model, "grefcoco|unc|val").sections
    assert sections["no_target"]["accuracy"] == 0.0  # 20 pixels were drawn for the unicorn
    assert sections["no_target"]["accuracy_50px"] == 1.0  # which is nothing by the other rule
    assert sections["generalized"]["t_acc"] == pytest.approx(2 / 3)
    assert sections["generalized"]["giou"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert sections["generalized"]["ciou"] == pytest.approx(60 / (40 + 20 + 40 + 20))


def test_whether_there_is_a_target_is_a_classification_of_its_own(datasets):
    """N-acc knows the expressions without a target only; See accuracy and ROC-AUC know all of them."""
    model = ToldModel()
    samples = datasets["grefcoco|unc|val"] = referring_world(model)
    sections = run(model, "grefcoco|unc|val").sections
    assert sections["no_target"]["see_accuracy"] == 2 / 4  # the left ball was denied, a unicorn seen
    assert not {"roc_auc", "ap"} & sections["no_target"].keys()  # nothing was measured
    assert "robust" not in sections
    assert sections["generalized"]["giou_target"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert sections["generalized"]["ciou_target"] == pytest.approx(60 / (40 + 20 + 40))

    for sample, told in zip(samples, [(0.9, 0.3), (0.8, 0.5)], strict=True):
        for expression, probability in zip(sample.expressions, told, strict=True):
            key = sample.image.tobytes(), str(referring_query(expression)[0])
            model.probabilities[key] = probability
    numbers = run(model, "grefcoco|unc|val").sections["no_target"]
    assert numbers["roc_auc"] == pytest.approx(2 / 3)  # the left ball, 0.3, is behind the unicorn, 0.5
    assert numbers["ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_references_with_true_and_false_sentences_have_the_metrics_of_r_refcoco(datasets):
    model = ToldModel()
    samples = referring_world(model)
    datasets["grefcoco|unc|val"] = [replace(sample, references=(4, 4)) for sample in samples]
    robust = run(model, "grefcoco|unc|val").sections["robust"]
    assert robust["num_references"] == 2
    assert robust["miou"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert robust["oiou"] == pytest.approx((40 + 0 + 20) / (40 + 20 + 40))
    assert robust["mrr"] == 0.0
    # Both sentences of the first image have a target: (40 + 0) / (40 + 20). The unicorn's mask has 20 pixels.
    assert robust["riou"] == pytest.approx((40 / 60 + 20 / (40 + 20)) / 2)


def test_teacher_forced_reads_the_answer_and_judges_only_its_mask(datasets):
    model = ToldModel()
    samples = datasets["refcoco|unc|val"] = referring_world(model)
    key = samples[0].image.tobytes(), str(referring_query("the left ball")[0])
    model.answers[key] = ("unused", mask_logits(samples[0].masks[1])[None])
    report = evaluate_entries(
        model,
        FakeProcessor(),
        ["refcoco|unc|val"],
        "unused",
        EvaluationSettings(teacher_forced=True, val_batch_size=2),
        show_progress=False,
    )
    # Only the first mask of an answer is asked for now: half of "both balls".
    assert report.results[0].sections["referring"]["giou"] == pytest.approx((1 / 2 + 1 + 1 / 2 + 0) / 4)
    assert report.protocol["answers"] == "teacher_forced"
    assert model.calls == []


def test_reasoning_leaves_ignored_pixels_out(datasets):
    model = ToldModel()
    image = image_of(5, 4, 10)
    mask, ignore = np.zeros((4, 10), dtype=np.uint8), np.zeros((4, 10), dtype=bool)
    mask[:, :4], ignore[:, 6:] = 1, True
    predicted = np.zeros((4, 10))
    predicted[:, 2:] = 1
    query = str(reasoning_query("what could a child kick?", True)[0])
    model.answers[image.tobytes(), query] = ("Sure, [SEG].", mask_logits(predicted)[None])
    datasets["ReasonSeg|val"] = [
        ReasonSample(
            image=image,
            question="what could a child kick?",
            is_sentence=True,
            mask=mask,
            ignore=ignore,
            source="r",
        )
    ]
    reasoning = run(model, "ReasonSeg|val").sections["reasoning"]
    assert reasoning["giou"] == pytest.approx(8 / 24)  # 2 of 6 columns


def test_vqa_compares_generated_text(datasets):
    model = ToldModel()
    samples = []
    for index, (said, expected) in enumerate(
        [("Two.", "two"), ("A red ball", "the red ball"), ("no", "yes")]
    ):
        image = image_of(index)
        model.answers[image.tobytes(), "what?"] = (said, torch.zeros(0, 24, 32))
        samples.append(VqaSample(image=image, question="what?", answer=expected, source=str(index)))
    datasets["llava_instruct_150k"] = samples
    vqa = run(model, "llava_instruct_150k").sections["vqa"]
    assert vqa["exact_match"] == pytest.approx(2 / 3)
    assert vqa["rouge_l"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # "red ball" of three words each
