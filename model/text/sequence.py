"""The complex-query sequence format: text <-> classes. Pure functions; randomness is handed in.

    USER:      Can you segment the person, tree, dog, sky in this image?
    ASSISTANT: person [SEG], tree [SEG], dog [NEG], sky [SEG].

Training data and constrained decoding both write their text here, so they always say the same words.
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
    """A complex query with its answer that remembers what it names, so that it can be asked with fewer classes."""

    format: SequenceFormat
    asked: tuple[str, ...]  # classes in the order of the query
    answered: tuple[str, ...]  # classes in the order of the answer
    present: frozenset[str]  # those asked that the image shows
    spare: tuple[str, ...]  # the others, in the order in which a shorter query keeps them: at random

    @classmethod
    def write(
        cls, format: SequenceFormat, asked: Sequence[str], answered: Sequence[str],
        present: Collection[str], spare: Sequence[str],
    ) -> ComplexQuery:  # fmt: skip
        """The conversation about `asked` in a format."""
        choices = [(name, name in present) for name in answered]
        turns = Conversation.of(format.query(asked), format.answer(choices)).turns
        return cls(turns, format, tuple(asked), tuple(answered), frozenset(present), tuple(spare))

    @property
    def least_spare(self) -> int:
        """How many absent classes a query cannot do without: one, if nothing that it names is there."""
        return 0 if self.present else 1

    def with_spare(self, num_spare: int) -> ComplexQuery:
        """The same query with `num_spare` of its absent classes, at least `least_spare`; order is kept."""
        spare = self.spare[:num_spare]
        kept = {*self.present, *spare}
        asked = [name for name in self.asked if name in kept]
        answered = [name for name in self.answered if name in kept]
        return self.write(self.format, asked, answered, self.present, spare)


def complex_conversation(
    classes_present: Sequence[str],
    classes_absent: Sequence[str],
    rng: np.random.Generator,
    format: SequenceFormat,
    num_all_classes: int = DEFAULT_NUM_ALL_CLASSES,
    *,
    class_list: Sequence[str] | None = None,
    likely: Sequence[str] = (),
    likely_share: float = 0.0,
) -> tuple[ComplexQuery, list[str]]:
    """One complex query with its answer, and the class names of its `[SEG]` tokens in their order.

    Args:
        classes_present: classes that have a mask in this image.
        classes_absent: classes known not to be in it.
        num_all_classes: most classes that one random query names; at least 1.
        class_list: the data set's whole list, in its order; needed when `random_classes_list` is off, and
            then the query names all of it that is known to be present or absent.
        likely, likely_share: absent classes that one could expect here, and which share of the absent classes of
            a random query is drawn from them, as far as there are so many.
    """
    _check_classes(classes_present, classes_absent, num_all_classes)
    if format.random_classes_list:
        asked = _random_subset(classes_present, classes_absent, rng, num_all_classes, likely, likely_share)
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
    spare = [absent[i] for i in rng.permutation(len(absent))]
    query = ComplexQuery.write(format, asked, answered, present.intersection(asked), spare)
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
    likely: Sequence[str],
    likely_share: float,
) -> list[str]:
    """All present classes (at most `num_all_classes`) and a random number of absent ones, shuffled.

    The number is drawn too, so that the model meets short queries as well as long ones.
    """
    chosen = [present[i] for i in rng.permutation(len(present))[:num_all_classes]]
    most = min(len(absent), num_all_classes - len(chosen))
    least = 0 if chosen else 1
    num_absent = int(rng.integers(min(least, most), most + 1))
    drawn = [absent[i] for i in rng.permutation(len(absent))]
    if likely:
        expected = set(likely)
        preferred = [name for name in drawn if name in expected][: round(likely_share * num_absent)]
        drawn = list(dict.fromkeys([*preferred, *drawn]))
    chosen += drawn[:num_absent]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def referring_conversation(
    expression: str, has_target: bool, rng: np.random.Generator, format: SequenceFormat
) -> Conversation:
    """A request to segment `expression` and its answer, both paraphrased.

    The answer holds one SEG, or one NEG when the image does not show what the expression describes (a
    format without NEG says so in words only).
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
    """A question that needs reasoning -> one mask, and the explanation when there is one."""
    suffix = pick("reasoning_request" if explanation is None else "explaining_request", rng)
    answer = with_token(pick("target_answer", rng), format.seg)
    if explanation is not None:
        answer = (*answer, f" {_clean(explanation)}")
    return Conversation.of(f"{_as_question(question, is_sentence)} {suffix}", answer)


def referring_query(expression: str) -> Text:
    """The fixed wording that evaluation uses for a referring expression."""
    return (phrases()["referring_query"][0].replace("{expression}", _clean(expression)),)


def reasoning_query(question: str, is_sentence: bool) -> Text:
    """The fixed wording that evaluation uses for a reasoning question or phrase."""
    return (f"{_as_question(question, is_sentence)} {phrases()['reasoning_request'][0]}",)


def _as_question(question: str, is_sentence: bool) -> str:
    question = _clean(question)
    return question if is_sentence else f"What is {question} in this image?"


def _clean(text: str) -> str:
    return " ".join(text.split())
