"""The pretraining recipe: the targets are what the scene shows. The training itself takes hours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Sam2Model

from model.checkpoints.layouts.mask_decoder import read_mask_decoder
from model.text.special_tokens import IMAGE
from model.text.tokenizer_files import load_tokenizer
from utils.toy.expressions import EXTREMES, ON_STUFF, REGIONS
from utils.toy.pretrain.attributes import NUM_ATTRIBUTES, NUM_RELATIONS, NUM_SIMPLE, attributes
from utils.toy.pretrain.clip import PATCH, SIDE, ClipStudent, pad_to_square
from utils.toy.pretrain.common import (
    HELD_OUT_SEED,
    PRETRAIN_SEED,
    Prepared,
    Student,
    batches,
    patch_histogram,
)
from utils.toy.pretrain.grounding import Places, Words, places_of
from utils.toy.pretrain.regions import BOX, POINT
from utils.toy.pretrain.sam import SamStudent
from utils.toy.pretrain.sam2 import SETTINGS, Sam2Student, write_sam2
from utils.toy.pretrain.talk import Spoken
from utils.toy.scene import CLASSES, STUFF, THINGS, Scene, Thing, draw_scene

LEFT, _, _, LOWER = range(len(EXTREMES))
NEAR, LEFT_OF, RIGHT_OF = range(NUM_RELATIONS)


def thing(name, colour, on, left, top, side=20):
    mask = np.zeros((200, 200), bool)
    mask[top : top + side, left : left + side] = True
    return Thing(name, colour, on, mask, (left, top, left + side, top + side))


@pytest.fixture(scope="module")
def meadow() -> Scene:
    """Two cars and a ball on grass: a red car far left, a blue one right of the middle, the ball beside it."""
    things = (
        thing("car", "red", "grass", 10, 90),
        thing("car", "blue", "grass", 110, 90, side=40),
        thing("ball", "red", "grass", 150, 90),
    )
    label = np.full((200, 200), STUFF.index("grass"), np.uint8)
    for item in things:
        label[item.mask] = CLASSES.index(item.name)
    return Scene(image=np.zeros((200, 200, 3), np.uint8), label=label, things=things, place="park")


def test_attributes_are_what_a_listener_would_say(meadow):
    facts = attributes(meadow)
    assert facts.shape == (3, NUM_ATTRIBUTES)
    assert facts[:, list(ON_STUFF).index("grass")].tolist() == [1, 1, 1]
    assert facts[:, len(ON_STUFF) + list(REGIONS).index("on the left")].tolist() == [1, 0, 0]
    leftmost, biggest = NUM_SIMPLE + LEFT, NUM_SIMPLE + len(EXTREMES)
    np.testing.assert_equal(facts[:, leftmost], [1, 0, np.nan])  # there is one ball only
    np.testing.assert_equal(facts[:, biggest], [0, 1, np.nan])
    assert np.isnan(facts[:2, NUM_SIMPLE + LOWER]).all()  # both stand at the same height
    ball = NUM_ATTRIBUTES - NUM_RELATIONS * (len(THINGS) - THINGS.index("ball"))
    np.testing.assert_equal(facts[:, ball + NEAR], [0, 1, np.nan])
    np.testing.assert_equal(facts[:, ball + LEFT_OF], [1, 1, np.nan])
    np.testing.assert_equal(facts[:, ball + RIGHT_OF], [0, 0, np.nan])
    car = NUM_ATTRIBUTES - NUM_RELATIONS * (len(THINGS) - THINGS.index("car"))
    assert np.isnan(facts[:, car : car + NUM_RELATIONS]).all()  # two cars: "near the car" means nothing


BALL, CAR, PERSON, RED, GREEN, IN, LEFT_WORD, YES = range(100, 108)
WORDS = Words(
    names={BALL: "ball", CAR: "car", PERSON: "person"},
    colours={RED: "red", GREEN: "green"},
    answers={YES},
    heard=(CAR, PERSON, RED, LEFT_WORD),
)


def share_of(square, *numbers):
    return patch_histogram(np.isin(square.thing, numbers), PATCH, 2)[:, 1]


def test_places_are_at_names_expressions_and_on_to_the_answer(meadow):
    square = pad_to_square(meadow)
    target = Spoken(share_of(square, 1), np.zeros(4, np.float32))
    tokens = [1, BALL, 2, LEFT_WORD, CAR, 3, 4, YES]
    said = {(LEFT_WORD, CAR): target}
    early = places_of(tokens, square, said, WORDS, to_answer=False)
    assert sorted(early) == [1, 4]
    np.testing.assert_array_equal(early[1].spoken.share, share_of(square, 3))
    assert early[4].spoken is target  # not all cars
    late = places_of(tokens, square, said, WORDS, to_answer=True)
    assert sorted(late) == [1, 4, 5, 6]
    assert late[5].spoken is late[6].spoken is target
    assert target.share.sum() * PATCH**2 == pytest.approx((20 * SIDE / 200) ** 2)


def test_a_name_after_its_colour_speaks_of_that_colour_only(meadow):
    """Otherwise the referent of "the red car" would depend on later words."""
    square = pad_to_square(meadow)
    places = places_of([CAR, RED, CAR, GREEN, CAR, RED, BALL], square, {}, WORDS, to_answer=False)
    expected = {0: (1, 2), 2: (1,), 4: (), 6: (3,)}
    assert places.keys() == expected.keys()
    for position, numbers in expected.items():
        np.testing.assert_array_equal(places[position].spoken.share, share_of(square, *numbers))
    dressed = places_of([PERSON, IN, RED, IN, GREEN], square, {}, WORDS, to_answer=False)
    assert sorted(dressed) == [0, 2]  # "person in red", not "in red in green"


def test_positions_tell_the_words_of_their_phrase(meadow):
    """A name whose state ignores the colour before it attends to all things of its class."""
    square = pad_to_square(meadow)
    tokens = [RED, CAR, 1, LEFT_WORD, CAR, 2, PERSON, IN, RED]
    said = {(LEFT_WORD, CAR): Spoken(share_of(square, 1), np.zeros(4, np.float32))}
    places = Places.of([{}, places_of(tokens, square, said, WORDS, to_answer=False)], WORDS)
    found = dict(zip(places.columns.tolist(), places.heard.tolist(), strict=True))
    #                  car person red left
    assert found == {1: [1, 0, 1, 0], 4: [1, 0, 0, 1], 6: [0, 1, 0, 0], 8: [0, 1, 1, 0]}
    assert places.rows.tolist() == [1] * 4


@pytest.mark.parametrize("stage", ["clip", "sam", "sam2", "language"])
def test_students_learn_from_what_they_prepare(stage):
    torch.manual_seed(0)
    if stage == "language":
        from transformers import CLIPVisionModel

        from utils.toy.pretrain.language import LanguageStudent

        tokenizer = load_tokenizer("assets/toy/llava")
        tokenizer.add_tokens([IMAGE], special_tokens=True)
        student = LanguageStudent(
            tokenizer, CLIPVisionModel.from_pretrained("assets/toy/clip", dtype=torch.float32)
        )
    else:
        students = {"clip": ClipStudent, "sam": SamStudent, "sam2": lambda: Sam2Student(SamStudent().sam)}
        student = students[stage]()
    prepared = student.prepare(next(batches(HELD_OUT_SEED, 2)))
    before = student.losses(prepared)["loss"]
    before.backward()
    unused = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    # What a class-free mask from one point or box, and the second last layer's states, have no use for.
    allowed = (
        "layers.4.",
        "post_layernorm",
        "pred_obj_score_head",
        "shared_embedding",
        "mask_embed.",
        "teacher",
    )
    assert not [name for name in unused if not any(word in name for word in allowed)]
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    optimizer.step()
    assert student.losses(prepared)["loss"] < before


def test_preparing_is_a_function_of_the_scenes():
    student = SamStudent()
    one, two = (student.prepare([draw_scene(5, 0), draw_scene(5, 1)]) for _ in range(2))
    for name, first in vars(one["prompts"]).items():
        assert torch.equal(first, getattr(two["prompts"], name))


def test_the_finer_one_begins_with_the_masks_of_its_teacher():
    """Given the teacher's embedding; only the presence token, which SAM has not, makes a difference."""
    torch.manual_seed(0)
    teacher = SamStudent()
    student = Sam2Student(teacher.sam)
    prepared = student.prepare([draw_scene(5, 0), draw_scene(5, 1)])
    prompts = replace(prepared["prompts"], gates=torch.zeros_like(prepared["prompts"].gates))
    assert {POINT, BOX} < set(prompts.kinds.tolist())
    with torch.no_grad():
        levels = teacher.sam.encode(prepared["images"], prepared["sizes"])
        expected, _ = teacher.masks(levels, prompts)
        finer = [torch.randn(2, 128, side, side) for side in (64, 32)]
        masks, _ = student.masks((*finer, *levels), prompts)
    assert torch.corrcoef(torch.stack([masks.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_the_folder_is_one_that_the_flag_and_the_library_read(tmp_path):
    sam = Sam2Student(SamStudent().sam).sam
    write_sam2(sam, tmp_path)
    settings, weights = read_mask_decoder(tmp_path)
    assert settings == SETTINGS
    assert weights.keys() == sam.state_dict().keys()
    library, report = Sam2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    half = sam.no_memory_embedding.half().float()
    torch.testing.assert_close(library.no_memory_embedding.float(), half, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_same_order_whoever_draws_them(workers):
    class Numbers(Student):
        def prepare(self, scenes):
            return scenes[0].image.sum(dtype=np.int64)

    source = iter(DataLoader(Prepared(Numbers(), 1, start=2), batch_size=None, num_workers=workers))
    drawn = batches(PRETRAIN_SEED, 1, start=2)
    assert [next(source) for _ in range(5)] == [next(drawn)[0].image.sum(dtype=np.int64) for _ in range(5)]
