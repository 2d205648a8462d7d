"""A model that answers as a test tells it to, worlds that it knows, and threads in place of processes."""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from model.outputs import Segmentation
from model.text.format import SequenceFormat
from model.text.sequence import referring_query
from tests.told_answers import answer_of
from utils.common.label_values import IGNORE, UNCLAIMED
from utils.data.base import Dataset
from utils.data.types import ReferringSample, SemanticSample
from utils.evaluation import gather
from utils.reports.report import Report

CLASSES = ("sky", "grass", "sea", "sand", "person", "dog", "ball", "flag")


def image_of(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class ToldModel(torch.nn.Module):
    """Answers from a table; keeps what it was asked."""

    can_pack_rows = True
    config = SimpleNamespace(num_all_classes=80, sequence_format=None, prompt=None)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.label_maps: dict[bytes, np.ndarray] = {}  # image -> predicted label map
        self.answers: dict[tuple[bytes, str], tuple[str, torch.Tensor]] = {}  # image, query -> text, masks
        self.probabilities: dict[tuple[bytes, str], float] = {}  # image, query -> that it has a target
        self.calls: list[dict] = []

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def segment_batch(self, images, classes, *, processor, classes_per_query, **_):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append({"images": len(images), "classes": classes, "classes_per_query": classes_per_query})
        results = []
        for image, names in zip(images, classes, strict=True):
            labels = self.label_maps[image.tobytes()]
            present = [bool((labels == class_id).any()) for class_id in range(len(names))]
            masks = [np.where(labels == class_id, 2.0, -2.0) for class_id in np.flatnonzero(present)]
            stacked = np.stack(masks) if masks else np.zeros((0, *labels.shape))
            results.append(
                Segmentation(
                    names=tuple(names),
                    present=present,
                    probabilities=[float(p) for p in present],
                    masks=torch.from_numpy(stacked).float(),
                    num_passes=2,
                )
            )
        return results

    def encode_batch(self, images, *, processor):
        return images

    def generate_batch(self, images, conversations, *, image_of_row, processor, max_new_tokens):
        self.calls.append({"images": len(images), "rows": len(conversations)})
        results = []
        for row, conversation in zip(image_of_row, conversations, strict=True):
            text, masks = self.answers[images[row].tobytes(), str(conversation.turns[-1])]
            results.append(answer_of(text, masks))
        return results

    def target_probabilities(self, images, queries, *, image_of_row, processor):
        return [
            self.probabilities.get((images[row].tobytes(), "".join(query)))
            for row, query in zip(image_of_row, queries, strict=True)
        ]

    def forward(self, *, images, conversations, image_of_row):
        """Teacher-forced: the masks of the answers that were read."""
        masks = [[] for _ in images]
        for row, conversation in zip(image_of_row, conversations, strict=True):
            assert conversation.num_seg == 1
            masks[row].append(self.answers[images[row].tobytes(), str(conversation.turns[0])][1][0])
        return SimpleNamespace(masks=[torch.stack(of_image) for of_image in masks])


@dataclass
class ToldInputs:
    """What ToldModel reads, in place of `ModelInputs`."""

    images: list
    conversations: list
    image_of_row: list

    def to(self, device):
        return self

    def fields(self):
        return vars(self)


@dataclass
class FakeProcessor:
    format: SequenceFormat = field(default_factory=lambda: SequenceFormat.named("paper"))

    def collate(self, images, conversations, image_of_row, pack_rows):
        return ToldInputs(images, conversations, image_of_row)


def numbers_of(result) -> str:
    """Everything that goes into report.json, to the last bit, but for the time it took."""
    content = Report(model="", protocol={}, results=(result,)).to_dict()
    del content["timings"]
    return json.dumps(content, sort_keys=True)


def mask_logits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 1.0, -1.0)).float()


class ListDataset(Dataset):
    """Samples in place of files."""

    name = source = "list"

    def __init__(self, samples, **facts) -> None:
        super().__init__("unused", "val")
        self.samples = list(samples)
        self.has_no_target = any(any(getattr(sample, "no_target", ())) for sample in self.samples)
        vars(self).update(facts)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]

    def sample_of(self, index, rng, recipe):
        raise NotImplementedError


def absent_from(label: np.ndarray, num_classes: int) -> tuple[int, ...]:
    """The complement, as for labels that are exhaustive."""
    return tuple(sorted(set(range(num_classes)) - set(np.unique(label).tolist())))


def semantic_world(model: ToldModel, num_images: int, *, seed: int = 0) -> list[SemanticSample]:
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(num_images):
        image = image_of(1000 * seed + index)
        held = rng.choice(len(CLASSES) - 1, size=3, replace=False)  # the last class is nowhere
        label = rng.choice([*held, IGNORE], size=image.shape[:2]).astype(np.uint16)
        predicted = np.where(
            rng.random(label.shape) < 0.7, label.astype(np.int32), rng.choice([*held, UNCLAIMED], label.shape)
        )
        predicted = np.where(predicted == IGNORE, rng.integers(0, 7), predicted)
        model.label_maps[image.tobytes()] = predicted
        samples.append(
            SemanticSample(
                image=image,
                label=label,
                classes=CLASSES,
                source=str(index),
                absent=absent_from(label, len(CLASSES)),
            )
        )
    return samples


def referring_world(model: ToldModel) -> list[ReferringSample]:
    """Two images: a hit in two masks and a miss; a half hit and a mask drawn for nothing."""
    image, other = image_of(1, 4, 10), image_of(2, 4, 10)
    left, right = np.zeros((4, 10), dtype=np.uint8), np.zeros((4, 10), dtype=np.uint8)
    left[:, :5], right[:, 5:] = 1, 1
    both = left | right

    def tell(image, expression, text, masks):
        stacked = torch.stack([mask_logits(m) for m in masks]) if masks else torch.zeros(0, 4, 10)
        model.answers[image.tobytes(), str(referring_query(expression)[0])] = (text, stacked)

    tell(image, "both balls", "They are [SEG] and [SEG].", [left, right])
    tell(image, "the left ball", "It is not in this image [NEG].", [])
    tell(other, "the right ball", "It is [SEG].", [both])
    tell(other, "a unicorn", "It is [SEG].", [left])
    return [
        ReferringSample(
            image=image,
            expressions=("both balls", "the left ball"),
            masks=np.stack([both, left]),
            no_target=(False, False),
            source="a",
        ),
        ReferringSample(
            image=other,
            expressions=("the right ball", "a unicorn"),
            masks=np.stack([right, np.zeros_like(right)]),
            no_target=(False, True),
            source="b",
        ),
    ]


class Threads:
    """Threads in place of processes: each has a rank, and what one gathers the others give."""

    def __init__(self, monkeypatch, num: int) -> None:
        self.num = num
        self.local = threading.local()
        self.barrier = threading.Barrier(num, timeout=60)
        self.given: list = [None] * num
        group = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rank=lambda: getattr(self.local, "rank", 0),
            get_world_size=lambda: num,
            all_gather_object=self.all_gather_object,
            barrier=self.barrier.wait,
        )
        monkeypatch.setattr(gather, "dist", group)

    def all_gather_object(self, shares, mine):
        self.given[self.local.rank] = pickle.dumps(mine)  # as between processes
        self.barrier.wait()
        shares[:] = [pickle.loads(given) for given in self.given]
        self.barrier.wait()

    def run(self, function) -> list:
        """function(rank) on every thread; what each returned."""

        def one(rank):
            self.local.rank = rank
            return function(rank)

        with ThreadPoolExecutor(self.num) as pool:
            return list(pool.map(one, range(self.num)))
