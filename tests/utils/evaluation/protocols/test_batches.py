"""A whole (tiny, random) model: what is measured does not depend on how many images share a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoints.load import load_model
from tests.tiny_weights import noise_image
from tests.utils.evaluation.told_model import absent_from
from utils.data.types import ReasonSample, ReferringSample, SemanticSample, VqaSample
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import SemanticProtocol, protocol_for

CLASSES = ("person", "tree", "dog", "traffic light", "sky", "chest of drawers", "road")
SIZES = ((40, 60), (64, 48), (33, 33), (20, 71), (50, 50))


@pytest.fixture(scope="module")
def model_and_processor(tiny_folders):
    # In float32 the rounding of another batch size decides a tie of two masks here and there.
    return load_model(tiny_folders.llava, dtype=torch.float64, **tiny_folders.parts)


def samples_of(kind: str) -> list:
    samples = []
    for number, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng(number)
        about = {"image": noise_image(height, width, seed=number), "source": f"{number}.png"}
        masks = rng.integers(0, 2, (number % 3 + 1, height, width)).astype(np.uint8)
        if kind == "semantic":
            label = rng.integers(0, len(CLASSES), (height, width)).astype(np.uint16)
            samples.append(
                SemanticSample(label=label, classes=CLASSES, absent=absent_from(label, len(CLASSES)), **about)
            )
        elif kind in ("referring", "generalized"):
            texts = tuple(f"the tree number {k}" for k in range(len(masks)))
            no_target = (False,) * len(masks)
            samples.append(ReferringSample(expressions=texts, masks=masks, no_target=no_target, **about))
        elif kind == "reasoning":
            ignore = masks[0].astype(bool)
            question = {"question": "where can a person sit?", "is_sentence": bool(number % 2)}
            samples.append(ReasonSample(mask=masks[0], ignore=ignore, **question, **about))
        else:
            samples.append(VqaSample(question=f"what is tree {number}?", answer="a dog", **about))
    return samples


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("semantic", {}),
        ("semantic", {"classes_per_query": 3, "presence_threshold": 0.4}),
        ("semantic", {"rethreshold": 0.45, "oracle_classes": True}),
        ("semantic", {"free_generation": True, "classes_per_query": 1}),
        ("referring", {}),
        ("referring", {"teacher_forced": True}),
        ("generalized", {"teacher_forced": True}),
        ("reasoning", {"teacher_forced": True}),
        ("vqa", {}),
    ],
)
def test_batches_of_three_give_the_records_of_batches_of_one(model_and_processor, kind, settings):
    model, processor = model_and_processor
    samples = samples_of(kind)
    found = []
    for size in (1, 3):
        protocol = protocol_for(
            samples[0],
            EvaluationSettings(val_batch_size=size, max_new_tokens=6, **settings),
            has_no_target=kind == "generalized",
        )
        with torch.no_grad():
            predictions = [
                prediction
                for start in range(0, len(samples), size)
                for prediction in protocol.predict(model, processor, samples[start : start + size])
            ]
        records = [protocol.record(*pair) for pair in zip(samples, predictions, strict=True)]
        found.append((predictions, protocol.sections(records)))
    (one, sections), (three, same) = found
    assert sections.keys() == same.keys()
    for section, numbers in sections.items():
        assert same[section] == pytest.approx(numbers, abs=1e-6, nan_ok=True), section
    if kind == "semantic":
        for ours, theirs in zip(one, three, strict=True):
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.answered_present, theirs.answered_present)


def test_finished_probabilities_are_judged_again_with_the_masks_of_what_is_present_then(model_and_processor):
    model, processor = model_and_processor
    [sample] = samples_of("semantic")[:1]
    chances = np.sort(_predict(model, processor, sample, presence_threshold=0.5).probabilities)
    middle = float(chances[len(chances) // 2])
    plain = _predict(model, processor, sample)
    judged = _predict(model, processor, sample, rethreshold=middle)
    np.testing.assert_array_equal(judged.probabilities, plain.probabilities)
    expected = np.flatnonzero(plain.probabilities >= middle)
    assert 0 < len(expected) < len(CLASSES)
    np.testing.assert_array_equal(judged.answered_present, expected)
    assert set(np.unique(judged.labels)) <= {-1, *expected.tolist()}
    everything = _predict(model, processor, sample, rethreshold=0.0)
    assert everything.answered_present.tolist() == list(range(len(CLASSES)))


def test_a_threshold_for_a_model_that_answers_freely_is_refused(model_and_processor):
    model, processor = model_and_processor
    free = replace(processor, format=replace(processor.format, sequence_augmentation=False))
    with pytest.raises(ValueError, match="answers every class with SEG or NEG"):
        model.segment(noise_image(), ["tree"], processor=free, rethreshold=0.5)


def _predict(model, processor, sample, **settings):
    protocol = SemanticProtocol(EvaluationSettings(**settings), CLASSES)
    with torch.no_grad():
        return protocol.predict(model, processor, [sample])[0]


def test_a_model_of_a_format_without_neg_is_evaluated_by_free_answers(tiny_folders):
    parts = tiny_folders.parts
    model, processor = load_model(tiny_folders.llava, dtype=torch.float32, format="lisa", **parts)
    protocol = SemanticProtocol(EvaluationSettings(classes_per_query=4), CLASSES)
    samples = samples_of("semantic")[:2]
    with torch.no_grad():
        predictions = protocol.predict(model, processor, samples)
    sections = protocol.sections([protocol.record(*p) for p in zip(samples, predictions, strict=True)])
    assert all(prediction.probabilities is None for prediction in predictions)
    answered = {name for name in sections if "names" in name}
    assert answered == {"free_names", "hallucinated_names"}
