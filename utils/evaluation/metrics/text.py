"""Answers in text: exact match and ROUGE-L."""

from __future__ import annotations

import re
import string

from rapidfuzz.distance import LCSseq

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the rule of SQuAD's evaluation)."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether both are equal after `normalise_answer`."""
    return normalise_answer(answer) == normalise_answer(expected)


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L: F-measure of the longest common subsequence of words (Lin, "ROUGE", 2004).

    Words are runs of letters and digits in lower case, not stemmed. 0 when either side has no words.
    """
    said, wanted = _words(answer), _words(expected)
    common = LCSseq.similarity(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
