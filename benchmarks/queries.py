"""Complex queries that an untrained model answers with a chosen number of present classes, in several ways.

Every way is checked against the first: the same choices, and the same hidden states of the masks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.reference_answer import PlainAnswer
from model.backbones.base import ImageFeatures
from model.generation.decoding import ComplexAnswer, decode_choices
from model.generation.prompts import Prompts, read_prompts
from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import EncodedImages
from model.processor import LasagnaProcessor

HEIGHT, WIDTH = 480, 640
TOLERANCE = 1e-3  # of hidden states, relative to their largest value; all ways compute the same ones


class Asker:
    """A model that answers queries about an encoded image."""

    def __init__(self, model: LasagnaForConditionalGeneration, processor: LasagnaProcessor) -> None:
        self.model, self.processor = model, processor
        self.seg_id, self.neg_id = processor.token_ids.seg, processor.token_ids.neg
        settings = model.config.sam_settings
        embeddings = tuple(torch.randn(1, *shape) for shape in settings.embedding_shapes)
        self.encode = model.image_features  # by CLIP
        self.features = ImageFeatures(tokens=())  # of the current image
        self.shift = 0.0  # added to the logit of [SEG]
        logits = model.text_logits

        def shifted(states: Tensor) -> Tensor:
            shifted_logits = logits(states)
            shifted_logits[..., self.seg_id] += self.shift
            return shifted_logits

        model.text_logits = shifted
        model.sam.encode = lambda *_: embeddings
        model.image_features = lambda *_: self.features

    @torch.no_grad()
    def look_at(self, image: np.ndarray) -> None:
        """Encodes a (height, width, 3) uint8 image, the subject of the queries that follow."""
        prepared = self.processor.images.prepare(image)
        self.features = self.encode(self.processor.images.collate([prepared]))

    @torch.no_grad()
    def in_passes(self, image: np.ndarray, names: Sequence[str]) -> tuple[ComplexAnswer, Prompts]:
        """Our answer, and the prompt with the encoded image."""
        conversation, plan = self.processor.plan(names)
        prompts = read_prompts(self.model, self.processor, [image], [conversation], [0])
        [answer] = decode_choices(
            self.model.backbone.language_model,
            self.model.text_logits,
            prompts.embeddings,
            prompts.mask,
            [plan],
            seg_id=self.seg_id,
            neg_id=self.neg_id,
            cache=prompts.cache,
        )
        return answer, prompts


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query that a model answers with a known number of present classes."""

    asker: Asker
    image: np.ndarray
    names: tuple[str, ...]
    shift: float  # added to the logit of [SEG] to get that number
    answer: ComplexAnswer
    images: EncodedImages  # the image
    num_prompt_tokens: int

    def again(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run`, with this query's image and shift set in the model."""

        def run_here() -> object:
            self.asker.features, self.asker.shift = self.images.features, self.shift
            return run()

        return run_here

    @property
    def plain(self) -> PlainAnswer:
        """The same query for the plain ways."""
        return PlainAnswer(self.asker.model, self.asker.processor, self.image, self.names)

    def in_passes(self) -> None:
        """Decoding in passes."""
        answer, _ = self.asker.in_passes(self.image, self.names)
        check_same(self, answer.present, list(answer.seg_states))

    def token_by_token(self) -> None:
        """On top of cached keys and values."""
        found = self.plain.with_cache()
        check_same(self, found.present, found.states)

    @torch.no_grad()
    def draw(self) -> list[Tensor]:
        """Masks at the size of the image."""
        return self.asker.model.decode_masks([self.answer.seg_states], self.images, [0])


def make_query(asker: Asker, names: Sequence[str], num_present: int, *, tries: int = 10) -> Query:
    """A random image and a shift with which exactly `num_present` of `names` are present.

    A choice changes the following ones, so the number may be skipped; after `tries` attempts another image is drawn.
    """
    for seed in itertools.count():
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        asker.look_at(image)
        asker.shift, low, high = 0.0, -math.inf, math.inf
        for _ in range(tries):
            answer, prompts = asker.in_passes(image, names)
            found = sum(answer.present)
            if found == num_present:
                return Query(
                    asker=asker,
                    image=image,
                    names=tuple(names),
                    shift=asker.shift,
                    answer=answer,
                    images=prompts.images,
                    num_prompt_tokens=prompts.mask.shape[1],
                )
            low, high = (asker.shift, high) if found < num_present else (low, asker.shift)
            margins = torch.tensor(answer.probabilities).logit().sort(descending=True).values
            wanted = asker.shift - float(margins[num_present - 1 : num_present + 1].mean())
            asker.shift = wanted if low < wanted < high else (low + high) / 2
    raise AssertionError("there is always another image")


def check_same(query: Query, present: Sequence[bool], states: Sequence[Tensor]) -> None:
    """Checks that another way has the same choices and states."""
    assert list(present) == query.answer.present, f"other choices: {present} and {query.answer.present}"
    ours = query.answer.seg_states
    difference = (torch.stack(list(states)) - ours).abs().max() / ours.abs().max()
    assert difference < TOLERANCE, f"states differ by {difference}"


def answered_ids(query: Query) -> list[int]:
    """The token ids of the answer with our choices."""
    asker, plan = query.asker, query.plain.plan
    ids = list(plan.token_ids)
    for position, present in zip(plan.positions, query.answer.present, strict=True):
        ids[position] = asker.seg_id if present else asker.neg_id
    return ids


def single_tokens(query: Query, num_lengths: int) -> dict[int, Callable[[], None]]:
    """Position in the answer -> function that computes the choice there without a cache, checked against ours."""
    plain, ids = query.plain, torch.tensor([answered_ids(query)])
    chosen = np.linspace(0, len(query.names) - 1, num_lengths).round().astype(int).tolist()

    def decide(number: int) -> None:
        text = torch.cat([plain.prompt, ids[:, : plain.plan.positions[number]]], dim=1)
        logits = query.asker.model.text_logits(plain.read(text))
        present = bool(logits[query.asker.seg_id] >= logits[query.asker.neg_id])
        assert present == query.answer.present[number], f"{query.names[number]} is answered otherwise"

    return {plain.plan.positions[number]: lambda number=number: decide(number) for number in chosen}
