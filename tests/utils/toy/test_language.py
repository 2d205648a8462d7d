"""Texts about scenes are verified by parsing them, with independent code."""

import re
from collections import defaultdict

import numpy as np
import pytest

from utils.toy.language import (
    absent_expressions,
    caption,
    expressions,
    pair_expressions,
    questions,
    reasoning_questions,
)
from utils.toy.scene import CLASSES, THINGS, draw_scene

COLOURS = "red|blue|green|yellow|orange|purple|white|black|grey|brown|pink"
NOUN = re.compile(
    r"^(?:the )?(?:(?P<most>left|leftmost|right|rightmost|upper|top|lower|bottom|biggest|largest|smallest) )?"
    rf"(?:(?P<colour>{COLOURS}) )?(?P<name>{'|'.join(CLASSES)})"
    rf"(?: in (?:a )?(?P<wears>{COLOURS})(?: shirt)?)?(?: (?P<where>.*))?$"
)
NUMBERS = ("zero", "one", "two", "three", "four")


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(9, index) for index in range(16)]


def rng(index: int = 0) -> np.random.Generator:
    return np.random.default_rng((1, index))


def at(scene, thing):
    height, width = scene.label.shape
    return thing.centre[0] / width, thing.centre[1] / height


def read(scene, text):
    """The things that an expression refers to, without any margins."""
    match = NOUN.match(text)
    assert match, text
    colour = match["colour"] or match["wears"]
    found = [t for t in scene.things if t.name == match["name"] and colour in (None, t.colour)]
    where, most = match["where"] or "", match["most"]
    if relation := re.match(r"(?:to the )?(left|right) of (.*)|(?:next to|near|close to) (.*)", where):
        side, landmark, near = relation.groups()
        (other,) = read(scene, landmark or near)
        if near:
            reach = 0.3
            return [t for t in found if np.hypot(*np.subtract(at(scene, t), at(scene, other))) < reach]
        sign = 1 if side == "right" else -1
        return [t for t in found if sign * (at(scene, t)[0] - at(scene, other)[0]) > 0]
    if stands := re.match(r"(?:on|in) the (grass|road|sand|sea|sky)$", where):
        return [t for t in found if t.on == stands[1]]
    tests = {
        "on the left": lambda x, y: x < 0.4, "on the right": lambda x, y: x > 0.6,
        "on the far left": lambda x, y: x < 0.25, "on the far right": lambda x, y: x > 0.75,
        "in the middle": lambda x, y: 1 / 3 < x < 2 / 3, "at the top": lambda x, y: y < 0.4,
        "at the bottom": lambda x, y: y > 0.6,
    }  # fmt: skip
    if where:
        return [t for t in found if tests[where](*at(scene, t))]
    if most and found:
        ranks = {
            "left": lambda t: -at(scene, t)[0], "right": lambda t: at(scene, t)[0],
            "upper": lambda t: -at(scene, t)[1], "top": lambda t: -at(scene, t)[1],
            "lower": lambda t: at(scene, t)[1], "bottom": lambda t: at(scene, t)[1],
            "smallest": lambda t: -t.mask.sum(), "biggest": lambda t: t.mask.sum(),
            "largest": lambda t: t.mask.sum(),
        }  # fmt: skip
        return [max(found, key=ranks[most.removesuffix("most")])]
    return found


def test_an_expression_means_its_thing_and_no_other(scenes):
    num_told = 0
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            texts = expressions(scene, thing, rng(index))
            assert len(set(texts)) == len(texts)
            for text in texts:
                found = read(scene, text)
                assert len(found) == 1, text
                assert found[0] is thing, text
            num_told += len(texts)
    assert num_told > 100


def test_an_expression_without_target_means_nothing_in_the_scene(scenes):
    for index, scene in enumerate(scenes):
        texts = absent_expressions(scene, rng(index), 5)
        assert len(texts) == len(set(texts)) == 5
        for text in texts:
            match = NOUN.match(text)
            assert match["name"] in THINGS or match["name"] not in scene.present
            assert read(scene, text) == []


def test_an_expression_of_several_things_means_all_of_them(scenes):
    num_told = 0
    for index, scene in enumerate(scenes):
        for text, things in pair_expressions(scene, rng(index)):
            num_told += 1
            assert len({id(thing) for thing in things}) == len(things) >= 2
            if text.startswith(("the two ", "both ", "all ", "every ")):
                same = [thing for thing in scene.things if thing.name == things[0].name]
                assert {id(thing) for thing in things} == {id(thing) for thing in same}
                continue
            first, second = text.split(" and ")
            assert [id(thing) for thing in things] == [id(read(scene, part)[0]) for part in (first, second)]
    assert num_told > len(scenes)


def test_a_caption_is_a_few_true_sentences(scenes):
    for index, scene in enumerate(scenes):
        text = caption(scene, rng(index))
        assert text == text.lower()
        assert 1 <= text.count(".") <= 4
        assert text.endswith(".")
        words = set(re.findall(r"[a-z]+", text))
        named = words & set(CLASSES)
        assert named <= set(scene.present) | {"road", "sea"}  # "country road" and "open sea" are places
        for colour, name in re.findall(rf"({COLOURS}) ({'|'.join(THINGS)})", text):
            assert any((thing.colour, thing.name) == (colour, name) for thing in scene.things)


def test_a_question_has_one_short_answer_whoever_asks(scenes):
    for scene in scenes:
        answers = defaultdict(set)
        for index in range(5):
            asked = questions(scene, rng(index))
            assert 8 <= len(asked) <= 20
            for question, answer in asked:
                answers[question].add(answer)
                assert len(answer.split()) <= 2
        assert all(len(different) == 1 for different in answers.values())


def test_single_names_are_asked_for_as_often_when_absent_as_when_present(scenes):
    pattern = re.compile(r"^(?:is there|do you see|can you see|does the image show) (?:an? |the )?(.*?)"
                         r"(?: in (?:the picture|this image))?\?$")  # fmt: skip
    for index, scene in enumerate(scenes):
        answers = []
        for question, answer in questions(scene, rng(index)):
            name = pattern.match(question)
            if name and (name[1] in CLASSES or (answer == "no" and NOUN.match(name[1]) is None)):
                assert (answer == "yes") == (name[1] in scene.present)
                answers.append(answer)
        assert abs(answers.count("yes") - answers.count("no")) <= 1  # a bare "a tree" can be asked twice


def test_counts_and_colours_and_places_are_those_of_the_scene(scenes):
    num_asked = 0
    for index, scene in enumerate(scenes):
        for question, answer in questions(scene, rng(index)):
            if match := re.match(r"(?:what|which) colour (?:is|does) the (.*?)(?: have| wear)?\?$", question):
                assert [thing.colour for thing in read(scene, match[1])] == [answer]
            elif match := re.match(r"(?:where|in which part of the picture) is the (.*)\?$", question):
                (x, y) = at(scene, read(scene, match[1])[0])
                row = ("upper", "middle", "lower")[int(y * 3)]
                column = ("left", "middle", "right")[int(x * 3)]
                assert answer == ("middle" if row == column else f"{row} {column}")
            elif match := re.match(r"(?:how many|count the) (\w+)", question):
                name = {"people": "person", "buses": "bus", "benches": "bench"}.get(match[1], match[1][:-1])
                assert NUMBERS.index(answer) == sum(thing.name == name for thing in scene.things)
            else:
                continue
            num_asked += 1
    assert num_asked > len(scenes)


def test_a_reasoning_question_never_names_what_it_asks_for(scenes):
    seen = set()
    for index, scene in enumerate(scenes):
        for item in reasoning_questions(scene, rng(index)):
            words = re.findall(r"[a-z]+", item.question.lower())
            assert not set(words) & set(item.names)
            assert item.is_sentence == item.question.endswith(("?", "."))
            expected = np.any([scene.mask_of(name) for name in item.names], axis=0)
            np.testing.assert_array_equal(item.mask, expected)
            assert not (item.mask & item.ignore).any()
            assert all(name in item.explanation for name in item.names)
            seen.update(item.names)
    assert len(seen) > 12
