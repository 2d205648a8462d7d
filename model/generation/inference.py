"""Inference: complex queries, referring, reasoning, chat. Nothing here is used by training.

Complex queries are decoded under the constraint of their format (`model/generation/decoding.py`), everything else
greedily. Prompts about one image share the key-value cache of their prefix (`model/generation/prompts.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from model.choices import DEFAULT_MATCH_DISTANCE, DEFAULT_NEW_TOKENS
from model.errors import UserError
from model.generation.finding import find, with_instances
from model.generation.greedy import greedy, states_of_answer
from model.generation.presence import target_probabilities
from model.generation.prompts import encode_batch, read_prompts
from model.generation.queries import segment_constrained, segment_freely
from model.generation.sampling import GREEDY, Sampling
from model.generation.streaming import OnToken
from model.generation.token_chooser import TokenChooser
from model.mask_path import MIN_SCORE
from model.outputs import ChatAnswer, EncodedImage, EncodedImages, Segmentation
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.format import class_names
from model.text.special_tokens import Text


class InferenceMixin(nn.Module):
    """`encode`, `segment`, `chat` and their batched forms, for `LasagnaForConditionalGeneration`."""

    def encode(self, image: np.ndarray, *, processor: LasagnaProcessor | None = None) -> EncodedImage:
        """Run the image encoders once on a (height, width, 3) uint8 RGB image, for several questions about it.

        `segment`, `chat` and their batched forms accept the result in place of the image and give the same answers.
        It is valid only for this processor and the model's current weights.
        """
        [encoded] = self.encode_batch([image], processor=processor)
        return encoded

    @torch.no_grad()
    def encode_batch(
        self, images: Sequence[np.ndarray | EncodedImage], *, processor: LasagnaProcessor | None = None
    ) -> list[EncodedImage]:
        """`encode` for a batch of images; encoded ones are returned unchanged."""
        fresh = [image for image in images if not isinstance(image, EncodedImage)]
        found: Iterator[EncodedImage] = iter(())
        if fresh:
            with self._evaluating():
                found = iter(encode_batch(self, processor or self.processor, fresh))
        return [image if isinstance(image, EncodedImage) else next(found) for image in images]

    def segment(
        self,
        image: np.ndarray | EncodedImage,
        classes: Sequence[str],
        *,
        processor: LasagnaProcessor | None = None,
        presence_threshold: float | None = None,
        rethreshold: float | None = None,
        classes_per_query: int | None = None,
        match_distance: float = DEFAULT_MATCH_DISTANCE,
        min_score: float = MIN_SCORE,
    ) -> Segmentation:
        """Presence and masks of `classes` in one image; see `segment_batch`."""
        [answer] = self.segment_batch(
            [image],
            [classes],
            processor=processor,
            presence_threshold=presence_threshold,
            rethreshold=rethreshold,
            classes_per_query=classes_per_query,
            match_distance=match_distance,
            min_score=min_score,
        )
        return answer

    @torch.no_grad()
    def segment_batch(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        classes: Sequence[Sequence[str]],
        *,
        processor: LasagnaProcessor | None = None,
        presence_threshold: float | None = None,
        rethreshold: float | None = None,
        classes_per_query: int | None = None,
        match_distance: float = DEFAULT_MATCH_DISTANCE,
        min_score: float = MIN_SCORE,
    ) -> list[Segmentation]:
        """Answers one complex query for each image.

        Args:
            images: (height, width, 3) uint8 RGB each, or the result of `encode`; may be empty.
            classes: for each image the class names of the query.
            processor: default: the model's own.
            presence_threshold: minimum probability of a present class; None: the more probable choice. It is applied
                during decoding, so later choices are conditioned on it.
            rethreshold: a threshold that is applied to the final probabilities.
            classes_per_query: longer lists are split into queries of this size; None: the maximum in training
                (`num_all_classes` of the config).
            match_distance: maximum edit distance between a freely generated name and a class name, see
                `NameMatcher`; unused by models with constrained decoding.
            min_score: of a concept head's instances; those with a higher score are in the answer.

        Raises:
            ValueError: an image has no classes or a string instead of a list, the lists differ in length, or a
                threshold is given for a model without constrained decoding, which has no probabilities.
        """
        processor = processor or self.processor
        if isinstance(classes, str) or len(images) != len(classes):
            what = (
                "the string " + repr(classes)
                if isinstance(classes, str)
                else f"{len(classes)} lists of classes"
            )
            raise ValueError(f"{len(images)} images but {what}; pass a list of class names for each image")
        limit = self.config.num_all_classes if classes_per_query is None else classes_per_query
        if limit < 1:
            raise UserError(f"classes_per_query must be at least 1, got {limit}")
        queries = [
            (index, names[start : start + limit])
            for index, names in enumerate(map(class_names, classes))
            for start in range(0, len(names), limit)
        ]
        if not queries:
            return []
        with self._evaluating():
            if processor.format.answers_every_class:
                return segment_constrained(
                    self, images, queries, processor, presence_threshold, rethreshold, min_score
                )
            if presence_threshold is not None or rethreshold is not None:
                raise UserError(
                    f"a presence threshold needs a model that answers every class with SEG or NEG; this one has "
                    f"{processor.format}. Leave the threshold out"
                )
            return segment_freely(self, images, queries, processor, match_distance, min_score)

    @torch.no_grad()
    def rethreshold(
        self,
        answer: Segmentation,
        image: EncodedImage,
        threshold: float | None,
        *,
        min_score: float = MIN_SCORE,
    ) -> Segmentation:
        """Decides again which classes of an answer are present, without a pass of the language model.

        The result is that of `segment` with the same `presence_threshold` as before and `rethreshold=threshold`; only
        the masks are decoded again.

        Args:
            answer: of `segment` about this image.
            threshold: minimum probability of a present class, in [0, 1]; None: 0.5, the more probable choice.
            min_score: as in `segment_batch`.

        Raises:
            UserError: the threshold is out of range, or the answer was generated freely and has no probabilities.
        """
        threshold = 0.5 if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise UserError(f"a threshold must be in 0 to 1, got {threshold}")
        if answer.states is None:
            raise UserError(
                "the answer was generated freely and has no probabilities; leave the threshold out"
            )
        present = [probability >= threshold for probability in answer.probabilities]
        with self._evaluating():
            of_image = None if answer.image_states is None else [answer.image_states]
            [found] = find(self, [answer.states], [present], EncodedImages.of([image]), of_image, min_score)
        again = replace(answer, present=present, masks=found.masks, presence=found.presence, maps=found.maps)
        return with_instances(again, found.instances)

    def chat(
        self,
        image: np.ndarray | EncodedImage,
        text: str | Text | Conversation,
        *,
        processor: LasagnaProcessor | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        on_token: OnToken | None = None,
    ) -> ChatAnswer:
        """Generates the answer to a text, or to a conversation that ends with the user, about one image.

        `on_token` is called with 0 and each token as it comes; see `generate_batch`.
        """
        conversation = text if isinstance(text, Conversation) else Conversation.of(text)
        [answer] = self.generate_batch(
            [image],
            [conversation],
            processor=processor,
            max_new_tokens=max_new_tokens,
            samplings=[sampling],
            on_token=on_token,
        )
        return answer

    @torch.no_grad()
    def generate_batch(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        conversations: Sequence[Conversation],
        *,
        image_of_row: Sequence[int] | None = None,
        processor: LasagnaProcessor | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        samplings: Sequence[Sampling] | None = None,
        on_token: OnToken | None = None,
        min_score: float = MIN_SCORE,
    ) -> list[ChatAnswer]:
        """Answers to conversations that end with the user.

        Args:
            images: (height, width, 3) uint8 RGB each, or the result of `encode`; each is encoded once.
            conversations: one for each image, or one for each entry of `image_of_row`.
            image_of_row: for each conversation the index of its image.
            max_new_tokens: the answer is truncated after this many tokens, and where the model's context ends.
            samplings: for each conversation how its tokens are chosen; None: greedily.
            on_token: called with the index of a conversation and its new token; a true answer ends that conversation.
            min_score: as in `segment_batch`.
        """
        processor = processor or self.processor
        owners = list(range(len(images))) if image_of_row is None else list(image_of_row)
        if not conversations and not owners:
            return []
        with self._evaluating():
            prompts = read_prompts(self, processor, images, conversations, owners)
            max_new_tokens = min(max_new_tokens, self._room(prompts.mask.shape[1]))
            eos = processor.token_ids.eos
            draws = samplings is not None and not all(sampling.is_greedy for sampling in samplings)
            tokens, states = greedy(
                self,
                prompts.embeddings,
                prompts.mask,
                eos,
                max_new_tokens,
                positions=prompts.positions,
                cache=prompts.cache,
                choose=TokenChooser(samplings or (), prompts.mask.device) if draws else None,
                on_token=on_token,
            )
            chosen = [
                states_of_answer(row, state, processor.token_ids, self.sam.states_per_prompt)
                for row, state in zip(tokens, states, strict=True)
            ]
            found = self.decode_found(chosen, prompts.images, owners, prompts.image_states, min_score)
        return [
            ChatAnswer(
                text=processor.decode(row),
                masks=of_row.masks,
                token_ids=row,
                mentions=processor.mentions(row),
                maps=of_row.maps,
                instances=of_row.instances,
            )
            for row, of_row in zip(tokens, found, strict=True)
        ]

    @torch.no_grad()
    def target_probabilities(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        queries: Sequence[Text],
        *,
        image_of_row: Sequence[int] | None = None,
        processor: LasagnaProcessor | None = None,
    ) -> list[float | None]:
        """The probability that each query, such as a referring expression, has a target in its image.

        See `model.generation.presence.target_probabilities`; the arguments are those of `generate_batch`.
        """
        owners = list(range(len(images))) if image_of_row is None else list(image_of_row)
        with self._evaluating():
            return target_probabilities(self, processor or self.processor, images, queries, owners)

    def _room(self, num_tokens: int) -> int:
        """How many tokens fit into the context after `num_tokens`. UserError without any: answers would be noise."""
        most = getattr(self.config.vlm_config.get_text_config(), "max_position_embeddings", None)
        if most is None:
            return sys.maxsize
        if num_tokens >= most:
            raise UserError(
                f"the conversation has {num_tokens:,} tokens with its image, and the model reads at most {most:,}; "
                "ask something shorter, or begin a new conversation"
            )
        return most - num_tokens

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode (no dropout); the previous mode is restored afterwards."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)
