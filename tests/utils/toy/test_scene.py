import numpy as np
import pytest

from utils.toy.scene import CLASSES, MIN_VISIBLE_PIXELS, STUFF, draw_scene


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(5, index) for index in range(6)]


def test_a_scene_depends_on_its_seed_and_index_alone(scenes):
    again = draw_scene(5, 3)
    np.testing.assert_array_equal(again.image, scenes[3].image)
    np.testing.assert_array_equal(again.label, scenes[3].label)
    assert not np.array_equal(draw_scene(6, 3).image[:200, :200], scenes[3].image[:200, :200])
    assert not np.array_equal(scenes[4].image[:200, :200], scenes[3].image[:200, :200])


def test_every_pixel_has_a_class(scenes):
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.label.shape, 3)
        assert scene.label.max() < len(CLASSES)
        assert {CLASSES[number] for number in np.unique(scene.label)} == set(scene.present)


def test_things_do_not_overlap_and_agree_with_the_label(scenes):
    for scene in scenes:
        claimed = np.zeros(scene.label.shape, int)
        for thing in scene.things:
            claimed += thing.mask
            assert (scene.label[thing.mask] == CLASSES.index(thing.name)).all()
        assert claimed.max(initial=0) <= 1
        np.testing.assert_array_equal(claimed > 0, scene.label >= len(STUFF))


def test_boxes_are_tight_and_things_are_visible(scenes):
    for thing in (thing for scene in scenes for thing in scene.things):
        left, top, right, bottom = thing.box
        inside = thing.mask[top:bottom, left:right]
        assert inside.sum() == thing.mask.sum() >= MIN_VISIBLE_PIXELS
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
