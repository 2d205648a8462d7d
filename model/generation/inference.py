"""Prompting the model: complex queries, referring, reasoning, chat. Nothing here is used by training.

Complex queries are decoded under the constraint of their format (`model/generation/decoding.py`), the rest greedily.
What is asked about one image shares its beginning (`model/generation/prompts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from model.errors import UserError
from model.generation.answers import DEFAULT_MATCH_DISTANCE, read_answer
from model.generation.decoding import decode_choices
from model.generation.greedy import greedy
from model.generation.prompts import encode_batch, read_prompts
from model.outputs import ChatAnswer, EncodedImage, Segmentation
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.format import class_names
from model.text.special_tokens import Text

DEFAULT_NEW_TOKENS = 256  # of the API, chat.py, test_sem.py and validation alike
TOKENS_PER_CLASS = 16  # enough for any class name with its choice, where an answer is generated freely


class InferenceMixin(nn.Module):
    """`encode`, `segment`, `chat` and their batch forms, of `LasagnaForConditionalGeneration`."""

    def encode(self, image: np.ndarray, *, processor: LasagnaProcessor | None = None) -> EncodedImage:
        """A (height, width, 3) uint8 RGB image for several questions: its encoders, most of an answer, run once.

        `segment`, `chat` and their batch forms take it for the image and answer as they do to the image itself. It
        belongs to this model as it is now, and to this processor.
        """
        [encoded] = self.encode_batch([image], processor=processor)
        return encoded

    @torch.no_grad()
    def encode_batch(
        self, images: Sequence[np.ndarray | EncodedImage], *, processor: LasagnaProcessor | None = None
    ) -> list[EncodedImage]:
        """`encode` of many images at once; those that are encoded already stay."""
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
    ) -> Segmentation:
        """Which of `classes` are in the image, and where; see `segment_batch`."""
        [answer] = self.segment_batch(
            [image],
            [classes],
            processor=processor,
            presence_threshold=presence_threshold,
            rethreshold=rethreshold,
            classes_per_query=classes_per_query,
            match_distance=match_distance,
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
    ) -> list[Segmentation]:
        """Answers one complex query for each image.

        Args:
            images: (height, width, 3) uint8 RGB each, or as `encode` gives it. No images are no answers.
            classes: for each image the class names to look for.
            processor: the model's own if not given.
            presence_threshold: probability from which a class counts as present; None: the likelier choice.
                It acts while decoding: later choices see it.
            rethreshold: the same for the finished probabilities.
            classes_per_query: longer lists are split into queries of so many classes; None: as many as one query
                named in training (`num_all_classes` of the config).
            match_distance: how far a freely generated name may be from a class name; see `NameMatcher`. Nothing to a
                model that answers every class.

        Raises:
            ValueError: an image has no classes or one string in place of a list, the lists differ in length, or a
                threshold is given to a model that answers freely and so has no probabilities.
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
                return self._segment_constrained(images, queries, processor, presence_threshold, rethreshold)
            if presence_threshold is not None or rethreshold is not None:
                raise UserError(
                    f"a presence threshold needs a model that answers every class with SEG or NEG; this one has "
                    f"{processor.format}. Leave the threshold out"
                )
            return self._segment_freely(images, queries, processor, match_distance)

    def chat(
        self,
        image: np.ndarray | EncodedImage,
        text: str | Text | Conversation,
        *,
        processor: LasagnaProcessor | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> ChatAnswer:
        """Answers a text, or a conversation that ends with the user, about one image."""
        conversation = text if isinstance(text, Conversation) else Conversation.of(text)
        [answer] = self.generate_batch(
            [image], [conversation], processor=processor, max_new_tokens=max_new_tokens
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
    ) -> list[ChatAnswer]:
        """Greedy answers to conversations that end with the user.

        Args:
            images: (height, width, 3) uint8 RGB each, or as `encode` gives it; each is encoded once.
            conversations: one for each image, or as many as `image_of_row` says.
            image_of_row: for each conversation the index of its image.
            max_new_tokens: the answer is cut after this many tokens.
        """
        processor = processor or self.processor
        owners = list(range(len(images))) if image_of_row is None else list(image_of_row)
        if not conversations and not owners:
            return []
        with self._evaluating():
            prompts = read_prompts(self, processor, images, conversations, owners)
            eos = processor.token_ids.eos
            tokens, states = greedy(
                self, prompts.embeddings, prompts.mask, eos, max_new_tokens, cache=prompts.cache
            )
            seg = processor.token_ids.seg
            chosen = [
                state[[position for position, token in enumerate(row) if token == seg]]
                for row, state in zip(tokens, states, strict=True)
            ]
            masks = self.decode_masks(chosen, prompts.images, owners)
        return [
            ChatAnswer(
                text=processor.decode(row),
                masks=row_masks,
                token_ids=row,
                mentions=processor.mentions(row),
            )
            for row, row_masks in zip(tokens, masks, strict=True)
        ]

    def _segment_constrained(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        queries: list[tuple[int, tuple[str, ...]]],
        processor: LasagnaProcessor,
        presence_threshold: float | None,
        rethreshold: float | None,
    ) -> list[Segmentation]:
        owners = [owner for owner, _ in queries]
        conversations, plans = zip(*(processor.plan(names) for _, names in queries), strict=True)
        prompts = read_prompts(self, processor, images, conversations, owners)
        answers = decode_choices(
            self.llava.model.language_model,
            self.text_logits,
            prompts.embeddings,
            prompts.mask,
            plans,
            cache=prompts.cache,
            seg_id=processor.token_ids.seg,
            neg_id=processor.token_ids.neg,
            presence_threshold=presence_threshold,
            rethreshold=rethreshold,
        )
        rows_of = rows_of_images(owners, len(images))
        states = [torch.cat([answers[i].seg_states for i in rows]) for rows in rows_of]
        masks = self.decode_masks(states, prompts.images, range(len(images)))
        return [
            Segmentation(
                names=tuple(name for i in rows for name in answers[i].names),
                present=[present for i in rows for present in answers[i].present],
                probabilities=[p for i in rows for p in answers[i].probabilities],
                masks=of_image,
                num_passes=max(answers[i].num_passes for i in rows),
            )
            for rows, of_image in zip(rows_of, masks, strict=True)
        ]

    def _segment_freely(
        self,
        images: Sequence[np.ndarray | EncodedImage],
        queries: list[tuple[int, tuple[str, ...]]],
        processor: LasagnaProcessor,
        match_distance: float,
    ) -> list[Segmentation]:
        """For models that were not taught to answer every class in order: generate, then read the answer."""
        owners = [owner for owner, _ in queries]
        conversations = [Conversation.of(processor.format.query(names)) for _, names in queries]
        most = max(len(names) for _, names in queries)
        answers = self.generate_batch(
            images,
            conversations,
            image_of_row=owners,
            processor=processor,
            max_new_tokens=TOKENS_PER_CLASS * (most + 1),
        )
        results = []
        for (_, names), answer in zip(queries, answers, strict=True):
            read = read_answer(answer, names, processor.format, max_distance=match_distance)
            # Masks come in the order of the answer, and go in that of the query.
            order = sorted(range(len(read.found)), key=read.found.__getitem__)
            present = [index in read.found for index in range(len(names))]
            results.append((names, present, read.masks[order], answer, read.unattributed))
        return [
            Segmentation(
                names=tuple(name for i in rows for name in results[i][0]),
                present=[present for i in rows for present in results[i][1]],
                probabilities=[float(present) for i in rows for present in results[i][1]],
                masks=torch.cat([results[i][2] for i in rows]),
                num_passes=max(len(results[i][3].token_ids) for i in rows),
                unattributed=tuple(words for i in rows for words in results[i][4]),
            )
            for rows in rows_of_images(owners, len(images))
        ]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, whatever mode the model is in."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def rows_of_images(owners: Sequence[int], num_images: int) -> list[list[int]]:
    """For each image the indices of its rows, in order."""
    return [[row for row, owner in enumerate(owners) if owner == image] for image in range(num_images)]
