import numpy as np
import pytest

from model.text.format import spoken
from utils.common.label_values import IGNORE, UNDEFINED
from utils.data.class_file import read_class_file
from utils.data.class_lists import ClassList, load_class_list, load_id_table, make_id_table, normalize_name

SIZES = {
    "ade20k": 150,
    "cocostuff": 171,
    "cityscapes": 19,
    "pascal_context_59": 59,
    "pascal_context_459": 459,
    "pascal_voc": 20,
}


@pytest.mark.parametrize("name", SIZES)
def test_lists_are_complete_and_without_duplicates(name):
    classes = load_class_list(name)
    assert len(classes) == len(classes.official) == SIZES[name]
    assert len({normalize_name(spoken_name) for spoken_name in classes}) == SIZES[name]
    for spoken_name in classes:
        assert spoken_name == spoken(spoken_name), "queries would write the name differently"
        assert "," not in spoken_name


@pytest.mark.parametrize(
    ("name", "index", "official", "spoken_name"),
    [
        ("ade20k", 0, "wall", "wall"),
        ("ade20k", 12, "person", "person"),
        ("ade20k", 59, "stairway", "stairway"),
        ("ade20k", 104, "fountain", "fountain"),
        ("ade20k", 149, "flag", "flag"),
        ("cocostuff", 0, "person", "person"),
        ("cocostuff", 79, "toothbrush", "toothbrush"),
        ("cocostuff", 80, "banner", "banner"),
        ("cocostuff", 84, "building-other", "building"),
        ("cocostuff", 91, "ceiling-tile", "tile ceiling"),
        ("cocostuff", 145, "sky-other", "sky"),
        ("cocostuff", 170, "wood", "wood"),
        ("cityscapes", 0, "road", "road"),
        ("cityscapes", 8, "vegetation", "vegetation"),
        ("cityscapes", 18, "bicycle", "bicycle"),
        ("pascal_context_59", 0, "aeroplane", "aeroplane"),
        ("pascal_context_59", 39, "pottedplant", "potted plant"),
        ("pascal_context_59", 58, "wood", "wood"),
        ("pascal_context_459", 0, "accordion", "accordion"),
        ("pascal_context_459", 258, "mountain", "mountain"),
        ("pascal_context_459", 430, "unknown", "unknown"),
        ("pascal_context_459", 458, "wool", "wool"),
        ("pascal_voc", 0, "aeroplane", "aeroplane"),
        ("pascal_voc", 10, "diningtable", "dining table"),
        ("pascal_voc", 19, "tvmonitor", "tv monitor"),
    ],
)
def test_classes_stand_where_the_official_list_has_them(name, index, official, spoken_name):
    classes = load_class_list(name)
    assert (classes.official[index], classes[index]) == (official, spoken_name)


@pytest.mark.parametrize(
    ("name", "value", "official"),
    [
        ("ade20k", 1, "wall"),
        ("ade20k", 150, "flag"),
        ("cocostuff", 0, "person"),
        ("cocostuff", 12, "stop sign"),  # 11, street sign, is not annotated
        ("cocostuff", 91, "banner"),
        ("cocostuff", 181, "wood"),
        ("cityscapes", 7, "road"),
        ("cityscapes", 26, "car"),
        ("cityscapes", 33, "bicycle"),
        ("pascal_context_59", 1, "aeroplane"),
        ("pascal_context_59", 59, "wood"),
        ("pascal_context_459", 1, "accordion"),
        ("pascal_context_459", 459, "wool"),
        ("pascal_voc", 15, "person"),
        ("pascal_voc", 20, "tvmonitor"),
    ],
)
def test_label_values_mean_the_official_class(name, value, official):
    assert load_class_list(name).official[load_id_table(name)[value]] == official


def test_values_without_a_class_are_ignored_or_unknown():
    assert load_id_table("ade20k")[0] == IGNORE
    assert load_id_table("ade20k")[151] == UNDEFINED
    coco = load_id_table("cocostuff")
    assert coco[255] == IGNORE
    assert [value for value in range(182) if coco[value] == IGNORE] == [
        11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90,
    ]  # fmt: skip
    assert (coco[182:255] == UNDEFINED).all()
    city = load_id_table("cityscapes")
    assert [value for value in range(34) if city[value] == IGNORE] == [
        0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30,
    ]  # fmt: skip


def test_the_59_classes_are_those_of_the_459_that_the_converted_labels_keep():
    """The numbers among the 459 that the public converters of Pascal Context keep, in their order."""
    kept = [
        2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158,
        159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360,
        366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
    ]  # fmt: skip
    everything = load_class_list("pascal_context_459").official
    assert tuple(everything[number - 1] for number in kept) == load_class_list("pascal_context_59").official


def test_a_table_is_as_long_as_its_highest_value():
    table = make_id_table([(3, 0), (65535, IGNORE)])
    assert table.shape == (65536,)
    assert (table[3], table[65535], table[4]) == (0, IGNORE, UNDEFINED)
    assert len(make_id_table([])) == 256


@pytest.mark.parametrize("name", SIZES)
def test_every_class_has_exactly_one_label_value(name):
    table = load_id_table(name)
    assert np.array_equal(np.sort(table[(table != IGNORE) & (table != UNDEFINED)]), np.arange(SIZES[name]))


def test_a_list_with_duplicates_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("Traffic light\ncar\ntraffic-light\n")
    with pytest.raises(ValueError, match=r"classes\.txt: classes 'Traffic light' and 'traffic-light'"):
        read_class_file(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match="same name"):
        ClassList(["a", "b"], ["thing", "thing"], "here")
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no classes"):
        read_class_file(tmp_path / "none.txt")
