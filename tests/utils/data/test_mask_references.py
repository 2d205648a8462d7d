"""References to masks in texts: every form in which readers of LISA++ expect them, and what is written for each."""

from __future__ import annotations

import pytest

from utils.data.mask_references import ids_in, parse_references, write_answer


def written(text, usable=range(1, 10)):
    """The answer with "@" for each mask, and the ids of the masks."""
    parts, ids = write_answer(parse_references(text), set(usable))
    return "@".join(parts), ids


@pytest.mark.parametrize(
    ("text", "answer", "ids"),
    [
        ("See <1|dog>.", "See dog @.", [1]),
        ("See <1| dog >, and < 2 |red cup>!", "See dog @, and red cup @!", [1, 2]),
        ("See 《1|dog》 and《2|cup》.", "See dog @ and @.", [1, 2]),
        ("A dog <1|dog> sits.", "A dog @ sits.", [1]),
        ("A Dog<1|dog> sits.", "A Dog @ sits.", [1]),
        ("Two dogs 《1|dog》sit", "Two dogs @ sit", [1]),
        ("A man《1|person》is here", "A man @ is here", [1]),
        ("A hotdog <1|dog>", "A hotdog dog @", [1]),
        ("<1|dog>", "dog @", [1]),
        ("<1|dog><2|cat>", "dog @ cat @", [1, 2]),
        ("<1|dog> and <1|dog>", "dog @ and dog @", [1, 1]),
        ('It is "<1|dog>" (<2|cat>).', 'It is "dog @" (cat @).', [1, 2]),
        ("pizza <1>, and <2>", "pizza @, and @", [1, 2]),
        ("Here: [<1|dog>, <2|cat>].", "Here: dog @, cat @.", [1, 2]),
        ("Here: [《1|dog》《2|cat》].", "Here: dog @, cat @.", [1, 2]),
        ("Here: [《1|dog》、《2|cat》]", "Here: dog @, cat @", [1, 2]),
        ("Here:[pizza <1>, pizza <2>, and pizza <3>]", "Here: pizza @, pizza @, pizza @", [1, 2, 3]),
        ("The pizzas [pizza <1>, pizza <2>]", "The pizzas pizza @, pizza @", [1, 2]),
        ("The dog [<1|dog>].", "The dog @.", [1]),
        ("Here: [1|dog, 2|big cat].", "Here: dog @, big cat @.", [1, 2]),
        ("[see <1|dog>: it runs]", "[see dog @: it runs]", [1]),
        ("In [brackets] of [1] <b>bold</b> <|x|> a < 5 and b > 3.", None, []),
        ("No [SEG] <image> </s> {seg} 1|2.", None, []),
        ("", "", []),
    ],
)
def test_a_reference_becomes_its_label_and_a_mask(text, answer, ids):
    assert written(text) == (text if answer is None else answer, ids)


@pytest.mark.parametrize(
    ("text", "answer", "ids"),
    [
        ("See <7|dog> and <1|cat>.", "See dog and cat @.", [1]),
        ("See [<7|dog>, <1|cat>, <8|cow>].", "See cat @.", [1]),
        ("See [<7|dog>, <8|dog>, <8|cow>] run.", "See dog, cow run.", []),
        ("A man《7|person》is here", "A man is here", []),
        ("See <7>, and <1>", "See, and @", [1]),
        ("See <7> there", "See there", []),
        ("<99999999999999999999|dog>", "dog", []),
    ],
)
def test_references_without_a_mask_are_words(text, answer, ids):
    assert written(text, usable={1}) == (answer, ids)


def test_ids_are_numbers_however_they_are_written():
    assert ids_in(parse_references("<007|a> <12|b> [《3|c》, <12|d>]")) == [7, 12, 3, 12]
