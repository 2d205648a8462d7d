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
    ListDataset,
    Threads,
    ToldModel,
    image_of,
    mask_logits,
    numbers_of,
    referring_world,
    semantic_world,
)
from utils.common.label_values import IGNORE, UNCLAIMED
from utils.data.types import ReasonSample, ReferringSample, VqaSample
from utils.evaluation import evaluate as evaluation
from utils.evaluation.batches import spread
from utils.evaluation.dataset_run import Outputs
from utils.evaluation.evaluate import evaluate_datasets, evaluate_entries
from utils.evaluation.prompting import EvaluationSettings


@pytest.fixture
def datasets(monkeypatch):
    """Entry -> list of samples, in place of files."""
    known: dict[str, list] = {}
    monkeypatch.setattr(
        evaluation, "open_datasets", lambda entries, folder: {e: listed(known[e], e) for e in entries}
    )
    return known


def listed(samples, entry: str) -> ListDataset:
    return ListDataset(samples, has_no_target=entry.startswith("grefcoco"))


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


# -------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize(("batch_size", "shares"), [(1, [4, 3]), (2, [4, 3]), (4, [4, 3]), (7, [7, 0])])
def test_processes_count_an_odd_number_of_samples_once_and_report_the_same(
    datasets, monkeypatch, batch_size, shares
):
    models = [ToldModel(), ToldModel(), ToldModel()]
    for model in models:
        datasets["ade20k"] = semantic_world(model, 7)
    settings = {"num_sheet_rows": 3, "val_batch_size": batch_size}
    alone = run(models[2], "ade20k", **settings)
    batches = [call["images"] for call in models[2].calls]
    both = Threads(monkeypatch, 2).run(lambda rank: run(models[rank], "ade20k", **settings))
    assert [sum(call["images"] for call in model.calls) for model in models[:2]] == shares
    # The batches are those of one process, so what a batch's other images do to an image is the same.
    assert sorted(call["images"] for model in models[:2] for call in model.calls) == sorted(batches)
    for together in both:
        assert numbers_of(together) == numbers_of(alone)
        assert together.num_samples == 7
        for ours, theirs in zip(together.sheet, alone.sheet, strict=True):
            np.testing.assert_array_equal(ours.prediction, theirs.prediction)
            np.testing.assert_array_equal(ours.image, theirs.image)


def test_the_best_and_the_worst_samples_are_shown_in_order(datasets):
    model = ToldModel()
    samples = semantic_world(model, 6)
    shares = [0.5, 0.1, 0.9, 0.3, 1.0, 0.0]  # of the pixels that are right
    for share, sample in zip(shares, samples, strict=True):
        right = np.arange(sample.label.size).reshape(sample.label.shape) < share * sample.label.size
        model.label_maps[sample.image.tobytes()] = np.where(
            right & (sample.label != IGNORE), sample.label.astype(np.int32), UNCLAIMED
        )
    report = evaluate_datasets(
        model, FakeProcessor(), {"ade20k": ListDataset(samples)}, EvaluationSettings(), outputs=Outputs(num_shown=2),
        show_progress=False,
    )  # fmt: skip
    [result] = report.results
    assert [row.source for row in result.worst] == ["5", "1"]
    assert [row.source for row in result.best] == ["4", "2"]
    assert result.worst[0].score == 0.0
    assert result.best[0].score == 1.0


def test_max_samples_and_images_are_spread_over_the_data_set(datasets):
    assert spread(10, None) == list(range(10))
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 9)
    result = run(model, "ade20k", max_samples=4, num_sheet_rows=2)
    assert result.num_samples == 4
    assert len(result.sheet) == 2


def test_the_model_trains_on_after_an_evaluation(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 1)
    model.train()
    run(model, "ade20k")
    assert model.training
    assert torch.is_grad_enabled()


def test_a_data_set_that_is_not_there_is_said_before_anything_is_predicted(tmp_path):
    model = ToldModel()
    with pytest.raises(ValueError, match="unknown data set 'ade20j'"):
        evaluate_entries(model, FakeProcessor(), ["ade20j"], tmp_path, EvaluationSettings())
    with pytest.raises(FileNotFoundError, match="ade20k"):
        evaluate_entries(model, FakeProcessor(), ["ade20k"], tmp_path, EvaluationSettings())
    with pytest.raises(FileNotFoundError, match="--dataset_dir"):
        evaluate_entries(model, FakeProcessor(), ["ade20k"], tmp_path / "nowhere", EvaluationSettings())
    assert model.calls == []


@pytest.mark.parametrize(
    "wrong",
    [{"val_batch_size": 0}, {"classes_per_query": 0}, {"presence_threshold": 1.5}, {"max_samples": -1}],
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluationSettings(**wrong)


def test_what_fails_on_one_process_ends_the_evaluation_on_all_of_them(datasets, monkeypatch):
    models = [ToldModel(), ToldModel()]
    for model in models:
        datasets["ade20k"] = semantic_world(model, 4)
    models[1].label_maps.clear()  # the second process knows no image: KeyError

    def run_or_fail(rank: int) -> str:
        try:
            run(models[rank], "ade20k")
        except (KeyError, RuntimeError) as problem:
            return f"{type(problem).__name__}: {problem}"[:24]
        return "went on"

    told = Threads(monkeypatch, 2).run(run_or_fail)
    assert told[0].startswith("RuntimeError: process 1:")
    assert told[1].startswith("KeyError: ")
