"""Answers in words against hand-made cases and rouge-score."""

from __future__ import annotations

import numpy as np
import pytest

from utils.evaluation.metrics import exact_match, rouge_l


@pytest.mark.parametrize(
    ("answer", "expected", "equal"),
    [
        ("Two.", "two", True),
        ("The ball is red", "ball is  red!", True),
        ("a red ball", "red balls", False),
        ("", "yes", False),
    ],
)
def test_exact_match_ignores_case_articles_and_punctuation(answer, expected, equal):
    assert exact_match(answer, expected) is equal


def test_rouge_l_by_hand():
    # common: "the red ball" of 4 and 5 words
    assert rouge_l("The red, red ball.", "the big red ball rolls") == pytest.approx(2 * 3 / (4 + 5))
    assert rouge_l("", "two") == 0.0
    assert rouge_l("...", "!") == 0.0
    assert rouge_l("Zwei Bälle", "zwei bälle") == 1.0


def test_rouge_l_equals_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rougeL"], use_stemmer=False)
    words = np.array(["the", "red", "Ball", "is", "on", "a", "table,", "left-hand", "side.", "2"])
    rng = np.random.default_rng(0)
    for _ in range(30):
        answer, expected = (" ".join(rng.choice(words, rng.integers(1, 15))) for _ in range(2))
        assert rouge_l(answer, expected) == pytest.approx(theirs.score(expected, answer)["rougeL"].fmeasure)
