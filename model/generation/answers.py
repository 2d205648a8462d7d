"""Parsing a freely generated answer: which classes of the query it mentions, and the mask of each.

Masks are assigned to mentions by token ids (`ChatAnswer.mentions`), never by the decoded text. A mention is matched
exactly after normalising, then by edit distance below a threshold. An unmatched mention is a hallucination: it is
counted and reported, not assigned to the nearest class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from model.choices import DEFAULT_MATCH_DISTANCE
from model.decoders.decoded import Instances
from model.errors import UserError
from model.outputs import ChatAnswer, SimilarityMaps
from model.text.format import SequenceFormat

_SEPARATORS = re.compile(r"[\s_-]+")
_EDGES = " \t\n.,;:!?\"'()[]"
_FILLERS = ("and ", "a ", "an ", "the ")


def normalize_name(name: str) -> str:
    """Lower case, single spaces between words. Names that are equal after this are treated as the same name."""
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFC", name).strip().lower())


@dataclass(frozen=True, kw_only=True)
class Match:
    """The class name that a mention was matched to."""

    index: int  # into the matcher's names
    exact: bool  # equal after normalising; otherwise within the edit distance


class NameMatcher:
    """Matches mentions to the class names of one query.

    Args:
        names: the class names; no two may be equal after normalising.
        max_distance: maximum Levenshtein distance as a fraction of the longer name's length, 0 to 1; 0 allows only
            exact matches.
    """

    def __init__(self, names: Sequence[str], *, max_distance: float = DEFAULT_MATCH_DISTANCE) -> None:
        if not 0 <= max_distance <= 1:
            raise ValueError(f"max_distance is a fraction of the name's length, 0 to 1, got {max_distance}")
        self.keys = [normalize_name(name) for name in names]
        self.index_of = {key: index for index, key in enumerate(self.keys)}
        if len(self.index_of) < len(self.keys):
            twice = sorted({key for key in self.keys if self.keys.count(key) > 1})
            raise UserError(
                f"class names that differ only in case or spaces: {', '.join(twice)}; ask for each once"
            )
        self.max_distance = max_distance

    def find(self, mention: str) -> Match | None:
        """The matching name; None if none is within `max_distance`, or two are equally near."""
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
    """Statistics of the names in freely generated answers. A mention is a name with its [SEG] or [NEG]."""

    num_exact: int = 0
    num_near: int = 0
    num_repeated: int = 0  # mentions of a class after its first one in an answer
    num_unanswered: int = 0  # names of the query that the answer does not mention
    unmatched: tuple[str, ...] = ()  # mentions that match no class (hallucinations), normalised

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
    """A freely generated answer to a complex query, parsed into classes."""

    found: tuple[int, ...]  # indices of the names that got a mask, each once, in order of first mention
    masks: Tensor  # (len(found), height, width) float: the maximum over the masks of a name
    members: tuple[
        tuple[int, ...], ...
    ]  # for each of `found` the masks of the answer that it is the maximum of
    counts: NameCounts
    maps: SimilarityMaps | None = None  # one for each of `found`, of a model with a spatial prompt
    unattributed: tuple[str, ...] = ()  # for each mask that matches no name, the text before it: "it is"
    instances: tuple[Instances, ...] | None = None  # of a concept head, one for each of `masks`


def read_answer(
    answer: ChatAnswer,
    names: Sequence[str],
    format: SequenceFormat,
    *,
    max_distance: float = DEFAULT_MATCH_DISTANCE,
) -> FreeAnswer:
    """Parse the answer to a complex query for the classes `names`.

    Formats without NEG are trained on queries for one object whose answer does not name it ("It is [SEG]."), so with
    them every mask of a query for a single class is assigned to that class.
    """
    matcher = NameMatcher(names, max_distance=max_distance)
    lone_name = len(names) == 1 and format.neg is None
    read = match_mentions(answer.mentions, answer.masks, matcher, lone_name=lone_name)
    if answer.maps is not None:
        read = replace(read, maps=answer.maps.merged(read.members))
    if (found := answer.instances) is not None:
        merged = tuple(Instances.join([found[place] for place in places]) for places in read.members)
        read = replace(read, instances=merged)
    return read


def match_mentions(
    mentions: Sequence[tuple[str, bool]], masks: Tensor, matcher: NameMatcher, *, lone_name: bool = False
) -> FreeAnswer:
    """Match every mention to a class and merge the masks of each class.

    Args:
        mentions: (name, has a mask) in the order of the answer.
        masks: (num_masks, height, width) logits, one for each mention that has a mask.
        lone_name: the query has one name, and every mention is matched to it.
    """
    assert sum(present for _, present in mentions) == len(masks)
    masks_of: dict[int, list[int]] = {}
    matches: list[Match] = []
    unmatched, unattributed = [], []
    rest = iter(range(len(masks)))
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
            masks_of.setdefault(match.index, []).append(mask)
    num_named = len({match.index for match in matches})
    num_exact = sum(match.exact for match in matches)
    counts = NameCounts(
        num_exact=num_exact,
        num_near=len(matches) - num_exact,
        num_repeated=len(matches) - num_named,
        num_unanswered=len(matcher.keys) - num_named,
        unmatched=tuple(unmatched),
    )
    merged = [masks[members].amax(0) for members in masks_of.values()]
    return FreeAnswer(
        found=tuple(masks_of),
        masks=torch.stack(merged) if merged else masks[:0],
        members=tuple(map(tuple, masks_of.values())),
        counts=counts,
        unattributed=tuple(unattributed),
    )


def _without_fillers(text: str) -> str:
    """`text` without leading "and", "a", "an", "the"; a name that is only such a word is kept."""
    for filler in _FILLERS:
        text = text.removeprefix(filler) or text
    return text
