"""Speaking with the model: complex queries, referring, reasoning, chat. Nothing here is used by training.

Complex queries are decoded under the constraint of their format (`model/decoding.py`), the rest greedily. What is
asked about one image shares its beginning (`model/prompts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from model.answers import DEFAULT_MATCH_DISTANCE, read_answer
from model.conversation import Conversation
from model.decoding import decode_choices
from model.errors import UserError
from model.outputs import ChatAnswer, Segmentation
from model.processor import LasagnaProcessor
from model.prompts import read_prompts
from model.tokens import Text

DEFAULT_NEW_TOKENS = 256  # of the API, chat.py, test_sem.py and validation alike
TOKENS_PER_CLASS = 16  # enough for any class name with its choice, where an answer is generated freely


class InferenceMixin:
    """`segment`, `segment_batch`, `chat` and `generate_batch` of `LasagnaForConditionalGeneration`."""

    def segment(
        self,
        image: np.ndarray,
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
        images: Sequence[np.ndarray],
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
            images: (height, width, 3) uint8 RGB each.
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
            ValueError: an image has no classes, the lists differ in length, or a threshold is given to a model
                that answers freely and so has no probabilities.
        """
        processor = processor or self._own_processor()
        if len(images) != len(classes):
            raise ValueError(f"{len(images)} images but {len(classes)} lists of classes")
        limit = self.config.num_all_classes if classes_per_query is None else classes_per_query
        if limit < 1:
            raise UserError(f"classes_per_query must be at least 1, got {limit}")
        queries = [
            (index, tuple(names[start : start + limit]))
            for index, names in enumerate(classes)
            for start in range(0, max(len(names), 1), limit)
        ]
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
        image: np.ndarray,
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
        images: Sequence[np.ndarray],
        conversations: Sequence[Conversation],
        *,
        image_of_row: Sequence[int] | None = None,
        processor: LasagnaProcessor | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> list[ChatAnswer]:
        """Greedy answers to conversations that end with the user.

        Args:
            images: (height, width, 3) uint8 RGB each; each is encoded once.
            conversations: one for each image, or as many as `image_of_row` says.
            image_of_row: for each conversation the index of its image.
            max_new_tokens: the answer is cut after this many tokens.
        """
        processor = processor or self._own_processor()
        owners = list(range(len(images))) if image_of_row is None else list(image_of_row)
        with self._evaluating():
            prompts = read_prompts(self, processor, images, conversations, owners)
            eos = processor.token_ids.eos
            tokens, states = self._greedy(
                prompts.embeddings, prompts.mask, eos, max_new_tokens, cache=prompts.cache
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

    def _greedy(
        self,
        prompt: Tensor,
        mask: Tensor,
        eos: int,
        max_new_tokens: int,
        *,
        cache: DynamicCache | None = None,
    ) -> tuple[list[list[int]], list[Tensor]]:
        """For each row its new tokens and the states (num_new, hidden_dim) that decided on them.

        prompt, mask, cache: as in `model.prompts.Prompts`; the cache is used up.
        """
        cache = DynamicCache() if cache is None else cache
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -prompt.shape[1] :]
        tokens: list[list[int]] = [[] for _ in range(len(prompt))]
        states: list[list[Tensor]] = [[] for _ in range(len(prompt))]
        step, open_rows = prompt, list(range(len(prompt)))
        for _ in range(max_new_tokens):
            state = self.language_states(step, mask, positions, cache)[:, -1]
            token = self.text_logits(state).argmax(-1)
            for row, new, deciding in zip(open_rows, to_host(token), state, strict=True):
                tokens[row].append(new)
                states[row].append(deciding)
            going_on = [place for place, row in enumerate(open_rows) if tokens[row][-1] != eos]
            if not going_on:
                break
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if len(going_on) < len(open_rows):  # a finished row is not computed any more
                open_rows = [open_rows[place] for place in going_on]
                kept = torch.tensor(going_on, device=mask.device)
                cache.batch_select_indices(kept)
                token, mask, positions = token[kept], mask[kept], positions[kept]
            step = self.embed(token.unsqueeze(1))
        return tokens, [torch.stack(row) if row else prompt[0, :0] for row in states]

    def _segment_constrained(
        self,
        images: Sequence[np.ndarray],
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
        images: Sequence[np.ndarray],
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
            results.append((names, present, read.masks[order], answer))
        return [
            Segmentation(
                names=tuple(name for i in rows for name in results[i][0]),
                present=[present for i in rows for present in results[i][1]],
                probabilities=[float(present) for i in rows for present in results[i][1]],
                masks=torch.cat([results[i][2] for i in rows]),
                num_passes=max(len(results[i][3].token_ids) for i in rows),
            )
            for rows in rows_of_images(owners, len(images))
        ]

    def _own_processor(self) -> LasagnaProcessor:
        if self.processor is None:
            raise ValueError("this model has no processor; load it with load_model, or pass processor=")
        return self.processor

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


def to_host(tokens: Tensor) -> list[int]:
    """The one place where generation waits for the device."""
    return tokens.tolist()
