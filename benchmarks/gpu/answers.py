"""Answers to complex queries about one image: in passes, and token by token with a cache.

The weights are random, so that a constant on the logit of [SEG] makes about ten classes present; see
`benchmarks.queries`. Whole answers begin with the pixels: both encoders, prompt, choices, masks at 480x640.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.reference_answer import PlainAnswer
from benchmarks.scenes import make_scene
from model.lasagna import LasagnaForConditionalGeneration
from utils.data.class_lists import load_class_list

ASKED = (20, 150)
NUM_PRESENT = 10
BATCH = 8
BAR_SECONDS, BAR_RATIO = 0.5, 20
ROUNDS, HALVINGS = 5, 12
TIMED_TOKENS = 100  # of an answer, token by token
TINY_ASKED, TINY_BATCH = (4, 12), 2


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "answers"."""
    model = machine.model
    few, many = TINY_ASKED if machine.tiny else ASKED
    names = load_class_list("ade20k")
    images = make_scene(model.processor, TINY_BATCH if machine.tiny else BATCH, 1).images
    with about_present(model, images[0], names[:many], NUM_PRESENT):
        seconds = time_answer(machine, results, images[0], names[:many], bar=BAR_SECONDS)
        default = machine.seconds(lambda: model.segment(images[0], names[:many]), ROUNDS)
        results.add("answers", f"{many} classes in queries of the default size, s", default)
        by_token = time_tokens(machine, images[0], names[:many])
        results.add(
            "answers",
            f"{many} classes token by token, cached, no SAM, no masks, s",
            by_token,
        )
        results.add(
            "answers", f"{many} classes, times faster than token by token", by_token / seconds, bar=BAR_RATIO
        )
    with about_present(model, images[0], names[:few], NUM_PRESENT):
        seconds = time_answer(machine, results, images[0], names[:few])
        results.add("answers", f"{few} classes, one image at a time, images/s", 1 / seconds)
        wanted = [names[:few]] * len(images)
        seconds = machine.seconds(lambda: model.segment_batch(images, wanted), ROUNDS)
        results.add("answers", f"{few} classes, batch of {len(images)}, images/s", len(images) / seconds)


def time_answer(
    machine: Machine, results: Results, image: np.ndarray, names: Sequence[str], **limits: float
) -> float:
    """Seconds of a whole answer to one query, from the pixels to the masks."""
    model, number = machine.model, len(names)
    answer = model.segment(image, names, classes_per_query=number)
    seconds = machine.seconds(lambda: model.segment(image, names, classes_per_query=number), ROUNDS)
    about = f"{sum(answer.present)} present, {answer.num_passes} passes"
    results.add("answers", f"{number} classes in one query, {about}, s", seconds, at_least=False, **limits)
    return seconds


def time_tokens(machine: Machine, image: np.ndarray, names: Sequence[str]) -> float:
    """Seconds of the same answer, one token after the other on cached keys and values; SAM and masks left out.

    Of its first tokens, and as many times as much as the answer has: later ones take a little longer.
    """
    plain = PlainAnswer(machine.model, machine.model.processor, image, names)
    number = min(TIMED_TOKENS, plain.num_tokens)
    seconds = machine.seconds(lambda: plain.with_cache(number), rounds=1, warm_up=0)
    return seconds * plain.num_tokens / number


@contextmanager
def about_present(
    model: LasagnaForConditionalGeneration, image: np.ndarray, names: Sequence[str], num_present: int
) -> Iterator[None]:
    """A constant on [SEG]'s logit, found by halving, with which about `num_present` of `names` are present."""
    logits, seg_id = model.text_logits, model.processor.token_ids.seg
    shift = 0.0

    def shifted(states: Tensor) -> Tensor:
        values = logits(states)
        values[..., seg_id] += shift
        return values

    with torch.no_grad():
        model.text_logits = shifted
        try:
            low, high = -20.0, 20.0
            for _ in range(HALVINGS):
                shift = (low + high) / 2
                found = sum(model.segment(image, names, classes_per_query=len(names)).present)
                if found == min(num_present, len(names) // 2):
                    break
                low, high = (shift, high) if found < num_present else (low, shift)
            yield
        finally:
            del model.text_logits
