"""The complex-query sequence format: from classes to text. Pure functions; the random generator is an argument.

    USER:      Can you segment the person, tree, dog, sky in this image?
    ASSISTANT: person [SEG], tree [SEG], dog [NEG], sky [SEG].

Training data and constrained decoding both get their text here, so their wording is always the same.
Source: "LaSagnA: Language-based Segmentation Assistant for Complex Queries", arXiv 2404.08506, section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from model.text.conversation import Conversation
from model.text.format import DEFAULT_NUM_ALL_CLASSES, SequenceFormat, spoken
from model.text.phrases import phrases, pick, with_token
from model.text.special_tokens import Text


@dataclass(frozen=True)
class ComplexQuery(Conversation):
    """A complex query with its answer. It knows its classes, so that absent ones can be dropped to shorten it."""

    format: SequenceFormat
    asked: tuple[str, ...]  # classes in the order of the query
    answered: tuple[str, ...]  # classes in the order of the answer
    present: frozenset[str]  # classes of the query that are in the image
    absent: tuple[str, ...]  # the other classes in random order; a shorter query keeps the first of them

    @classmethod
    def write(
        cls, format: SequenceFormat, asked: Sequence[str], answered: Sequence[str],
        present: Collection[str], absent: Sequence[str],
    ) -> ComplexQuery:  # fmt: skip
        """The conversation about `asked` in a format."""
        choices = [(name, name in present) for name in answered]
        turns = Conversation.of(format.query(asked), format.answer(choices)).turns
        return cls(turns, format, tuple(asked), tuple(answered), frozenset(present), tuple(absent))

    @property
    def min_absent(self) -> int:
        """Minimum number of absent classes: one if no class of the query is present, else zero."""
        return 0 if self.present else 1

    def with_num_absent(self, num_absent: int) -> ComplexQuery:
        """The same query with only `num_absent` (at least `min_absent`) of its absent classes; order is kept."""
        absent = self.absent[:num_absent]
        kept = {*self.present, *absent}
        asked = [name for name in self.asked if name in kept]
        answered = [name for name in self.answered if name in kept]
        return self.write(self.format, asked, answered, self.present, absent)


def complex_conversation(
    classes_present: Sequence[str],
    classes_absent: Sequence[str],
    rng: np.random.Generator,
    format: SequenceFormat,
    num_all_classes: int = DEFAULT_NUM_ALL_CLASSES,
    *,
    class_list: Sequence[str] | None = None,
    hard_negatives: Sequence[str] = (),
    hard_negative_fraction: float = 0.0,
) -> tuple[ComplexQuery, list[str]]:
    """One complex query with its answer, and the class names of its `[SEG]` tokens in order.

    Args:
        classes_present: classes that have a mask in this image.
        classes_absent: classes known not to be in it.
        num_all_classes: maximum number of classes in a random query, at least 1.
        class_list: the data set's class list, in its order; required when `random_classes_list` is off. The query
            then names every class of it that is known to be present or absent.
        hard_negatives: absent classes that are plausible in this image.
        hard_negative_fraction: fraction of a random query's absent classes that is drawn from `hard_negatives`, if
            there are enough of them.
    """
    _check_classes(classes_present, classes_absent, num_all_classes)
    if format.random_classes_list:
        asked = _random_subset(
            classes_present, classes_absent, rng, num_all_classes, hard_negatives, hard_negative_fraction
        )
    elif class_list is None:
        raise ValueError("without random_classes_list a query names the whole list: pass class_list")
    else:
        known = {*classes_present, *classes_absent}
        asked = [name for name in class_list if name in known]
        if len(asked) != len(known):
            raise ValueError(f"not in class_list: {sorted(known - set(asked))}")
    present = set(classes_present)
    answered = [name for name in asked if format.sequence_augmentation or name in present]
    if not format.order_following:
        answered = [answered[i] for i in rng.permutation(len(answered))]
    absent = [name for name in asked if name not in present]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    query = ComplexQuery.write(format, asked, answered, present.intersection(asked), absent)
    return query, [name for name in answered if name in present]


def _check_classes(present: Sequence[str], absent: Sequence[str], num_all_classes: int) -> None:
    if num_all_classes < 1:
        raise ValueError(f"num_all_classes must be at least 1, got {num_all_classes}")
    if not present and not absent:
        raise ValueError("a complex query needs at least one class that is known to be present or absent")
    counts = Counter(spoken(name) for name in (*present, *absent))
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ValueError(f"class named more than once in present and absent classes: {', '.join(twice)}")


def _random_subset(
    present: Sequence[str],
    absent: Sequence[str],
    rng: np.random.Generator,
    num_all_classes: int,
    hard_negatives: Sequence[str],
    hard_negative_fraction: float,
) -> list[str]:
    """All present classes (at most `num_all_classes`) and a random number of absent ones, shuffled.

    The number of absent classes is random so that the model sees both short and long queries.
    """
    chosen = [present[i] for i in rng.permutation(len(present))[:num_all_classes]]
    most = min(len(absent), num_all_classes - len(chosen))
    least = 0 if chosen else 1
    num_absent = int(rng.integers(min(least, most), most + 1))
    drawn = [absent[i] for i in rng.permutation(len(absent))]
    if hard_negatives:
        hard = set(hard_negatives)
        preferred = [name for name in drawn if name in hard][: round(hard_negative_fraction * num_absent)]
        drawn = list(dict.fromkeys([*preferred, *drawn]))
    chosen += drawn[:num_absent]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def referring_conversation(
    expression: str, has_target: bool, rng: np.random.Generator, format: SequenceFormat
) -> Conversation:
    """A request to segment `expression` and its answer, both in a random paraphrase.

    The answer contains one SEG, or one NEG when the expression has no target in the image (in a format without NEG,
    words only).
    """
    query = pick("referring_query", rng).replace("{expression}", _clean(expression))
    phrase = pick("target_answer" if has_target else "no_target_answer", rng)
    answer = with_token(phrase, format.seg if has_target else format.neg)
    return Conversation.of(query, answer)


def reasoning_conversation(
    question: str,
    is_sentence: bool,
    explanation: str | None,
    rng: np.random.Generator,
    format: SequenceFormat,
) -> Conversation:
    """A reasoning question and its answer with one SEG, and the explanation if there is one."""
    suffix = pick("reasoning_request" if explanation is None else "explaining_request", rng)
    answer = with_token(pick("target_answer", rng), format.seg)
    if explanation is not None:
        answer = (*answer, f" {_clean(explanation)}")
    return Conversation.of(f"{_as_question(question, is_sentence)} {suffix}", answer)


def referring_query(expression: str) -> Text:
    """The query for a referring expression in the fixed wording of evaluation."""
    return (phrases()["referring_query"][0].replace("{expression}", _clean(expression)),)


def reasoning_query(question: str, is_sentence: bool) -> Text:
    """The query for a reasoning question or phrase in the fixed wording of evaluation."""
    return (f"{_as_question(question, is_sentence)} {phrases()['reasoning_request'][0]}",)


def _as_question(question: str, is_sentence: bool) -> str:
    question = _clean(question)
    return question if is_sentence else f"What is {question} in this image?"


def _clean(text: str) -> str:
    return " ".join(text.split())
