"""What is done with a data set, damaged or not: the check, samples for training, an evaluation; and what came out."""

from __future__ import annotations

import io
import traceback
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.fuzz_data.world import Target
from model.errors import UserError
from model.outputs import ChatAnswer, Segmentation
from model.processor import LasagnaProcessor
from model.text.sequence import ComplexQuery
from utils.common.commands import one_line
from utils.common.label_values import NOTHING
from utils.data.base import Dataset
from utils.data.collate import LengthLimit, build_loader
from utils.data.mixture import Mixture
from utils.data.registry import DATASETS
from utils.data.tools import check
from utils.data.types import (
    ReasonSample,
    Recipe,
    ReferringSample,
    Sample,
    SemanticSample,
    UnusableItemError,
    VqaSample,
)
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings

LONGEST_LINE = 3000  # characters of a message
NUM_DRAWN = 4  # two steps of two images
NO_LIMIT = 1 << 30


@dataclass
class Seen:
    """What a target gave: labels by image and name, and what was refused."""

    labels: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # source -> a check sum of the class of each pixel
    masks: dict[str, int] = field(default_factory=dict)  # "source: name" -> check sum of a mask or an answer
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)  # source -> classes told to be absent
    refused: list[str] = field(default_factory=list)  # messages of one line
    tracebacks: list[str] = field(default_factory=list)
    num_used: int = 0


class AnyModel(torch.nn.Module):
    """Answers every question with the left half of the image: an evaluation without a model."""

    can_pack_rows = True
    config = SimpleNamespace(num_all_classes=80, sequence_format=None, prompt=None)
    device = torch.device("cpu")

    def segment_batch(self, images: Any, classes: Any, **_: Any) -> list[Segmentation]:
        answers = []
        for image, names in zip(images, classes, strict=True):
            half = torch.full(image.shape[:2], -1.0)
            half[:, : image.shape[1] // 2] = 1
            present = [number == 0 for number in range(len(names))]
            answers.append(
                Segmentation(
                    names=tuple(names),
                    present=present,
                    probabilities=[float(p) for p in present],
                    masks=half[None],
                    num_passes=1,
                )
            )
        return answers

    def encode_batch(self, images: Any, **_: Any) -> Any:
        return images

    def target_probabilities(self, images: Any, queries: Any, **_: Any) -> list[float]:
        return [0.5] * len(queries)

    def generate_batch(self, images: Any, conversations: Any, *, image_of_row: Any, **_: Any) -> list[Any]:
        answers = []
        for row in image_of_row:
            half = torch.full((1, *images[row].shape[:2]), -1.0)
            half[..., : images[row].shape[1] // 2] = 1
            answers.append(
                ChatAnswer(text="It is [SEG].", masks=half, token_ids=[1], mentions=(("it", True),))
            )
        return answers


@dataclass(frozen=True)
class Bench:
    """What every probe needs, made once."""

    processor: LasagnaProcessor
    recipe: Recipe
    model: torch.nn.Module | None  # for real steps


def probe(target: Target, bench: Bench, *, real_steps: bool = False) -> Seen:
    """Check a target, draw training samples and collate them, evaluate it."""
    seen = Seen()
    _try(seen, "check", lambda: _check(target))
    for entry in target.training:
        _try(seen, f"train {entry}", lambda entry=entry: _train(target, entry, bench, seen, real_steps))
    for entry in target.evaluation:
        _try(seen, f"evaluate {entry}", lambda entry=entry: _evaluate(target, entry, bench, seen))
    return seen


def _try(seen: Seen, what: str, work: Callable[[], Any]) -> None:
    try:
        work()
    except (UserError, OSError) as problem:  # what commands print as one line
        text = one_line(problem)
        if len(text) > LONGEST_LINE:
            seen.tracebacks.append(f"{what}: a message of {len(text)} characters: {text[:200]}")
        seen.refused.append(f"{what}: {text}")
    except Exception as problem:
        place = traceback.extract_tb(problem.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        seen.tracebacks.append(f"{what}: {type(problem).__name__} at {where}: {str(problem)[:300]}")


def _check(target: Target) -> None:
    flags = [f"--dataset_dir={target.root}", "--all", "--num_samples=2"]
    training = list(target.training)
    if training and training[0].is_own:
        flags.append(f"--dataset={training[0]}")
    elif training:
        source = _source_of(training[0].name)
        flags += [f"--dataset={source}", f"--{source}_data={'||'.join(map(str, training))}"]
    if target.evaluation:
        flags.append(f"--val_dataset_list={','.join(map(str, target.evaluation))}")
    with redirect_stdout(io.StringIO()):
        code = check.main(flags)
    assert code in (0, 1, 2), code


def _source_of(name: str) -> str:
    return DATASETS[name].source


def _train(target: Target, entry: Any, bench: Bench, seen: Seen, real_steps: bool) -> None:
    dataset = entry.open(target.root, training=True)
    for index in range(min(dataset.num_items, 24)):
        try:
            sample = dataset.sample_of(index, np.random.default_rng((0, index)), bench.recipe)
        except UnusableItemError:
            continue
        note_training(seen, sample)
    fit = LengthLimit(bench.processor, NO_LIMIT)
    mixture = Mixture([dataset], [1.0], recipe=bench.recipe, seed=0, fit=fit)
    loader = build_loader(
        mixture, bench.processor, batch_size=2, num_batches=NUM_DRAWN // 2, pack_rows=True, max_length=4096
    )
    for batch in loader:
        seen.num_used += len(batch.sources)
        if real_steps and bench.model is not None:
            output = bench.model(**batch.inputs.fields())
            output.loss.backward()
            bench.model.zero_grad()
            assert bool(torch.isfinite(output.loss)), "the loss is not finite"


def _evaluate(target: Target, entry: Any, bench: Bench, seen: Seen) -> None:
    dataset = entry.open(target.root)
    for index in range(min(len(dataset), 24)):
        try:
            note_evaluation(seen, dataset, dataset[index])
        except UnusableItemError as problem:
            seen.refused.append(str(problem))
    settings = EvaluationSettings(num_sheet_rows=1)
    evaluate_datasets(AnyModel(), bench.processor, {str(entry): dataset}, settings, show_progress=False)
    seen.num_used += len(dataset)


def note_training(seen: Seen, sample: Sample) -> None:
    """The masks of complex queries by class, and which classes are told to be absent."""
    first = 0
    for conversation in sample.conversations:
        masks = sample.masks[first : first + conversation.num_seg]
        first += conversation.num_seg
        if isinstance(conversation, ComplexQuery):
            names = [name for name in conversation.answered if name in conversation.present]
            seen.absent[f"train {sample.source}"] = tuple(conversation.absent)
        else:
            names = [f"{conversation.turns[0]}#{number}" for number in range(len(masks))]
        for name, mask in zip(names, masks, strict=True):
            seen.masks[f"train {sample.source}: {name}"] = checksum(mask)


def note_evaluation(seen: Seen, dataset: Dataset, sample: Any) -> None:
    """Labels and answers of an evaluation sample."""
    if isinstance(sample, SemanticSample):
        sums = np.zeros(1 << 16, dtype=np.uint32)  # of IGNORE as well
        sums[NOTHING] = 1
        sums[: len(sample.classes)] = [zlib.crc32(name.encode()) for name in sample.classes]
        seen.labels[sample.source] = sums[sample.label]  # by name: another class list is no other class
        seen.absent[sample.source] = tuple(sample.classes[k] for k in sample.absent)
    elif isinstance(sample, ReferringSample):
        for expression, mask, nothing in zip(sample.expressions, sample.masks, sample.no_target, strict=True):
            seen.masks[f"{sample.source}: {expression}"] = checksum(mask) + nothing
    elif isinstance(sample, ReasonSample):
        ignored = np.where(sample.ignore, 2, sample.mask)
        seen.masks[f"{sample.source}: {sample.question}"] = checksum(ignored)
    elif isinstance(sample, VqaSample):
        seen.masks[f"{sample.source}: {sample.question}"] = zlib.crc32(sample.answer.encode(errors="replace"))


def checksum(mask: np.ndarray) -> int:
    """Of shape and values."""
    values = np.ascontiguousarray(mask, dtype=np.uint8)
    return zlib.crc32(values.tobytes(), zlib.crc32(str(values.shape).encode()))


def wrong_labels(before: Seen, after: Seen) -> list[str]:
    """Labels that came out otherwise than from the sound data, though the damage could be seen."""
    wrong = []
    for source, label in after.labels.items():
        old = before.labels.get(source)
        if old is None:
            continue
        if old.shape != label.shape:
            wrong.append(f"{source}: label of {label.shape}, was {old.shape}")
        elif changed := int(((label != old) & (label != 0)).sum()):
            wrong.append(f"{source}: {changed} pixels have another class")
    for name, value in after.masks.items():
        if before.masks.get(name, value) != value:
            wrong.append(f"{name}: another mask or answer")
    for source, names in after.absent.items():
        present = {key.removeprefix(f"{source}: ") for key in before.masks if key.startswith(f"{source}: ")}
        if told := present & set(names):
            wrong.append(f"{source}: told to be absent though present: {', '.join(sorted(told))}")
    return wrong
