"""Reading a freely generated answer: which of the classes asked it speaks of, and which masks are theirs.

Masks belong to mentions by token ids (`ChatAnswer.mentions`), never by what the text spells. A mention is matched
exactly after normalising, then by edit distance under a threshold, and otherwise not at all: an unmatched mention is
a hallucination, which is counted and shown, never pressed into the nearest class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from model.errors import UserError
from model.outputs import ChatAnswer
from model.text.format import SequenceFormat

DEFAULT_MATCH_DISTANCE = 0.2  # edits / letters of the longer name: "trees" is a tree, "cat" is no car
_SEPARATORS = re.compile(r"[\s_-]+")
_EDGES = " \t\n.,;:!?\"'()[]"
_FILLERS = ("and ", "a ", "an ", "the ")


def normalize_name(name: str) -> str:
    """Lower case, one space between words: names that agree after this are the same name to a reader."""
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFC", name).strip().lower())


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a mention was taken for."""

    index: int  # into the matcher's names
    exact: bool  # equal after normalising, rather than near


class NameMatcher:
    """Finds mentions among the names of one query.

    Args:
        names: what may be meant; no two may agree after normalising.
        max_distance: largest Levenshtein distance, as a share of the longer name's letters, 0 to 1; at 0 only
            exact matches count.
    """

    def __init__(self, names: Sequence[str], *, max_distance: float = DEFAULT_MATCH_DISTANCE) -> None:
        if not 0 <= max_distance <= 1:
            raise ValueError(f"max_distance is a share of the letters, 0 to 1, got {max_distance}")
        self.keys = [normalize_name(name) for name in names]
        self.index_of = {key: index for index, key in enumerate(self.keys)}
        if len(self.index_of) < len(self.keys):
            twice = sorted({key for key in self.keys if self.keys.count(key) > 1})
            raise UserError(
                f"class names that differ only in case or spaces: {', '.join(twice)}; ask for each once"
            )
        self.max_distance = max_distance

    def find(self, mention: str) -> Match | None:
        """The name that is meant; None if there is no near one, or two that are equally near."""
        plain = normalize_name(mention.strip(_EDGES))
        for key in (plain, _without_fillers(plain)):
            if key in self.index_of:
                return Match(index=self.index_of[key], exact=True)
        nearest = process.extract(
            _without_fillers(plain),
            self.keys,
            scorer=Levenshtein.normalized_distance,
            score_cutoff=self.max_distance,
            limit=2,
        )
        if not plain or not nearest or (len(nearest) == 2 and nearest[0][1] == nearest[1][1]):
            return None
        return Match(index=nearest[0][2], exact=False)


@dataclass(frozen=True, kw_only=True)
class NameCounts:
    """What was named in freely generated answers. A mention is a name with its [SEG] or [NEG]."""

    num_exact: int = 0
    num_near: int = 0
    num_repeated: int = 0  # mentions of a class after its first one in an answer
    num_unanswered: int = 0  # names asked that the answer does not speak of
    unmatched: tuple[str, ...] = ()  # what was named and is no class: hallucinations, normalised

    @property
    def num_mentions(self) -> int:
        return self.num_exact + self.num_near + len(self.unmatched)

    @classmethod
    def total(cls, counts: Iterable[NameCounts]) -> NameCounts:
        counts = list(counts)
        return cls(
            num_exact=sum(c.num_exact for c in counts),
            num_near=sum(c.num_near for c in counts),
            num_repeated=sum(c.num_repeated for c in counts),
            num_unanswered=sum(c.num_unanswered for c in counts),
            unmatched=tuple(name for c in counts for name in c.unmatched),
        )


@dataclass(frozen=True, kw_only=True)
class FreeAnswer:
    """A freely generated answer to a complex query, read as classes."""

    found: tuple[int, ...]  # indices of the names that got a mask, each once, as first mentioned
    masks: Tensor  # (len(found), height, width) float: the maximum of the masks of a name
    counts: NameCounts
    unattributed: tuple[str, ...] = ()  # what stands before each mask that belongs to no name: "it is"


def read_answer(
    answer: ChatAnswer,
    names: Sequence[str],
    format: SequenceFormat,
    *,
    max_distance: float = DEFAULT_MATCH_DISTANCE,
) -> FreeAnswer:
    """Read the answer to a complex query that named `names`.

    What has no NEG was taught to be asked for one thing and to answer without naming it ("It is [SEG]."): when its
    query names one class, every mask is of that class.
    """
    matcher = NameMatcher(names, max_distance=max_distance)
    lone_name = len(names) == 1 and format.neg is None
    return match_mentions(answer.mentions, answer.masks, matcher, lone_name=lone_name)


def match_mentions(
    mentions: Sequence[tuple[str, bool]], masks: Tensor, matcher: NameMatcher, *, lone_name: bool = False
) -> FreeAnswer:
    """Mentions as classes.

    Args:
        mentions: (name, has a mask) in the order of the answer.
        masks: (num_masks, height, width) logits, one for each mention that has a mask.
        lone_name: every mention means the only name.
    """
    assert sum(present for _, present in mentions) == len(masks)
    mask_of: dict[int, Tensor] = {}
    matches: list[Match] = []
    unmatched, unattributed = [], []
    rest = iter(masks)
    for name, present in mentions:
        mask = next(rest) if present else None
        match = Match(index=0, exact=True) if lone_name else matcher.find(name)
        if match is None:
            unmatched.append(normalize_name(name.strip(_EDGES)))
            if present:
                unattributed.append(unmatched[-1])
            continue
        matches.append(match)
        if mask is not None:
            held = mask_of.get(match.index)
            mask_of[match.index] = mask if held is None else torch.maximum(held, mask)
    num_named = len({match.index for match in matches})
    num_exact = sum(match.exact for match in matches)
    counts = NameCounts(
        num_exact=num_exact,
        num_near=len(matches) - num_exact,
        num_repeated=len(matches) - num_named,
        num_unanswered=len(matcher.keys) - num_named,
        unmatched=tuple(unmatched),
    )
    merged = torch.stack(list(mask_of.values())) if mask_of else masks[:0]
    return FreeAnswer(found=tuple(mask_of), masks=merged, counts=counts, unattributed=tuple(unattributed))


def _without_fillers(text: str) -> str:
    """Without "and", "a", "an", "the" in front; a name that is nothing else stays."""
    for filler in _FILLERS:
        text = text.removeprefix(filler) or text
    return text
