"""Free text to class names: which classes a freely generated answer speaks of.

A mention is matched exactly after normalising, then by edit distance under a threshold, and otherwise not at all:
an unmatched mention is a hallucination, which is counted and shown, never pressed into the nearest class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from model.errors import UserError
from utils.data.class_lists import normalize_name

DEFAULT_MATCH_DISTANCE = 0.2  # edits / letters of the longer name: "trees" is a tree, "cat" is no car
_EDGES = " \t\n.,;:!?\"'()[]"
_FILLERS = ("and ", "a ", "an ", "the ")


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
            raise UserError(f"class names that differ only in case or spaces: {', '.join(twice)}")
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


def read_answer(
    mentions: Sequence[tuple[str, bool]], masks: Tensor, matcher: NameMatcher, *, lone_name: bool = False
) -> FreeAnswer:
    """Read one answer.

    Args:
        mentions: (name, has a mask) in the order of the answer, as of `SequenceFormat.parse`.
        masks: (num_masks, height, width) logits, one for each mention that has a mask. When these are not as
            many, because the text spells out a token, no mask can be told to belong to a name: all mentions
            are unmatched.
        lone_name: the query asked for one class, and the model answers such a query without naming it
            ("It is [SEG]."): every mask is of that class.
    """
    readable = sum(present for _, present in mentions) == len(masks)
    mask_of: dict[int, Tensor] = {}
    matches: list[Match] = []
    unmatched = []
    rest = iter(masks)
    for name, present in mentions:
        mask = next(rest) if present and readable else None
        match = Match(index=0, exact=True) if lone_name else matcher.find(name)
        if match is None or not readable:
            unmatched.append(normalize_name(name.strip(_EDGES)))
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
    return FreeAnswer(found=tuple(mask_of), masks=merged, counts=counts)


def _without_fillers(text: str) -> str:
    """Without "and", "a", "an", "the" in front; a name that is nothing else stays."""
    for filler in _FILLERS:
        text = text.removeprefix(filler) or text
    return text
