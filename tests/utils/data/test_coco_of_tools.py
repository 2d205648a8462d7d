"""COCO files as annotation tools write them: understood where they can mean one thing only."""

import numpy as np
import pytest

from tests.utils.data.coco_files import BOX, SPOKEN, annotation, box, content, draws, spoiled, training, write
from tests.utils.data.layouts import HEIGHT, WIDTH, save_json
from utils.data.registry import build_val_dataset
from utils.data.types import UnusableItemError


def test_numbers_and_texts_are_the_same_ids(tmp_path, recipe):
    made = content(
        annotation(5, [BOX]), annotation(10, [BOX], 2), num_images=2, neg_category_ids=["15", 10.0]
    )
    path = write(tmp_path, made)
    made["images"] = [image | {"id": float(image["id"])} for image in made["images"]]
    made["images"][0] |= {"height": float(HEIGHT), "width": float(WIDTH)}
    made["annotations"][0] |= {"image_id": "1", "category_id": "5"}
    made["annotations"][1] |= {"image_id": 2.0, "category_id": "10.0", "id": "x"}
    made["categories"][0]["id"] = "5"
    save_json(path, made)
    dataset = training(path)
    assert [item.objects[0][0] for item in dataset.items] == [0, 1]
    assert [item.absent for item in dataset.items] == [(1, 2), (2,)]
    assert dataset.items[0].size == (HEIGHT, WIDTH)
    save_json(path, spoiled("images", 1, id="1.0"))
    with pytest.raises(ValueError, match="images: id 1 comes twice"):
        training(path)


def test_sizes_that_are_null_are_not_stated(tmp_path):
    path = write(tmp_path, content(annotation(5, [BOX]), height=None, width=None))
    assert training(path).items[0].size is None
    for wrong in (0, -3, 1.5, "24", True, [24]):
        save_json(path, spoiled("images", 1, height=wrong))
        with pytest.raises(ValueError, match=r"images\[1\]: 'height' is .*; it is a number of pixels"):
            training(path)


def test_parentheses_are_spoken_only_where_they_tell_names_apart(tmp_path):
    made = content(
        annotation(1, [BOX]), annotation(2, [BOX]), neg_category_ids=[3], not_exhaustive_category_ids=[4]
    )
    names = ("bow_(weapon)", "bow_(decorative_ribbons)", "gull_(bird)", "Pan_(for_cooking)", "pan")
    made["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    dataset = training(write(tmp_path, made))
    spoken = ["bow (weapon)", "bow (decorative ribbons)", "gull", "pan (for cooking)", "pan"]
    assert list(dataset.classes) == spoken
    assert dataset.items[0].absent == (2,)
    made["categories"][4]["name"] = "pan_(for_cooking)"
    with pytest.raises(ValueError, match="have the same name; make them differ"):
        training(write(tmp_path, made))


def test_an_image_may_be_named_by_its_url_alone(tmp_path):
    made = content(annotation(5, [BOX]), coco_url="http://images.example/train2017/1.png")
    path = write(tmp_path, made, image_dir="train2017")
    del made["images"][0]["file_name"]
    save_json(path, made)
    assert training(path).items[0].path == tmp_path / "train2017/1.png"


@pytest.mark.parametrize("root_name", ["harbour", "boat"])  # a project may be called as its only class
def test_a_category_that_only_groups_others_is_no_class(tmp_path, recipe, caplog, root_name):
    made = content(annotation(5, [BOX]))
    made["categories"] = [
        {"id": 0, "name": root_name, "supercategory": "none"},
        {"id": 5, "name": "boat", "supercategory": root_name},
        {"id": 6, "name": "gull", "supercategory": "gull"},  # of no other one
    ]
    dataset = training(write(tmp_path, made), "exhaustive=true")
    assert list(dataset.classes) == ["boat", "gull"]
    assert {name for choices, _ in draws(dataset, recipe) for name in choices} == {"boat", "gull"}
    assert f"no class, as it only groups others and is never annotated: {root_name}" in caplog.text


def test_a_supercategory_that_somebody_looked_for_is_a_class(tmp_path):
    categories = [{"id": 5, "name": "vehicle"}, {"id": 10, "name": "boat", "supercategory": "vehicle"}]
    for made in (
        content(annotation(5, [BOX]), annotation(10, [BOX])),
        content(annotation(10, [BOX]), neg_category_ids=[5]),
        content(annotation(10, [BOX]), not_exhaustive_category_ids=["5"]),
    ):
        dataset = training(write(tmp_path, made | {"categories": categories}))
        assert list(dataset.classes) == ["vehicle", "boat"]


def test_several_entries_of_one_image_file_are_one_image(tmp_path, recipe):
    made = content(annotation(5, [BOX], 1), annotation(10, [BOX], 2), num_images=2)
    made["images"][1]["file_name"] = made["images"][0]["file_name"]
    dataset = training(write(tmp_path, made), "exhaustive=true")
    assert len(dataset) == 1
    for choices, masks in draws(dataset, recipe, 5):
        assert masks.keys() == {"boat", "traffic light"}, "neither is absent, though each entry lacks one"
        assert choices.get("gull") is not True
    assert list(dataset.notes) == ["listed several times in the annotation file; taken together"]


def test_what_a_tool_left_over_costs_no_image(tmp_path, recipe, caplog):
    beside = [WIDTH, 10, WIDTH + 1, 10, WIDTH + 1, 12, WIDTH, 12]
    made = content(annotation(5, [BOX, beside]), annotation(10, [beside]), annotation(15, [[3, 3]]))
    path = write(tmp_path, made)
    dataset = training(path, "exhaustive=true")
    for choices, masks in draws(dataset, recipe, 5):
        assert np.array_equal(masks["boat"], box(2, 3, 10, 8))
        assert choices.keys() == {"boat"}, "whether the others are there is not known"
    sample = build_val_dataset(f"own_coco:{path}|exhaustive=true", ".")[0]
    assert np.array_equal(sample.label == 0, box(2, 3, 10, 8) == 1)
    assert sample.partly == (1, 2)
    assert "a polygon too small to cover a pixel" in caplog.text
    assert "an object too small to cover a pixel" in caplog.text
    assert len(dataset.notes) == 2


def test_polygons_in_other_forms_are_read_and_noted(tmp_path, recipe):
    pairs = [BOX[k : k + 2] for k in range(0, 8, 2)]
    path = write(tmp_path, content(annotation(5, BOX), annotation(10, [pairs]), annotation(15, pairs)))
    dataset = training(path)
    for _, masks in draws(dataset, recipe, 3):
        assert all(np.array_equal(mask, box(2, 3, 10, 8)) for mask in masks.values())
        assert len(masks) == 3
    assert [len(places) for places in dataset.notes.values()] == [1, 2]


def test_fractions_of_the_size_are_named_for_what_they_are(tmp_path, recipe):
    fractions = [number / WIDTH for number in BOX]
    path = write(tmp_path, content(annotation(5, [fractions])))
    with pytest.raises(UnusableItemError, match="between 0 and 1: fractions of the image's size, not pixels"):
        training(path).draw(np.random.default_rng(0), recipe)


@pytest.mark.parametrize("number", [1e8, -1e9, 1e300])
def test_a_coordinate_far_away_is_a_skip(tmp_path, recipe, number):
    path = write(tmp_path, content(annotation(5, [[number, *BOX[1:]]])))
    with pytest.raises(UnusableItemError, match="more than 10 sides away"):
        training(path).draw(np.random.default_rng(0), recipe)


def test_labelmes_words_are_no_classes_while_nothing_is_drawn_for_them(tmp_path, caplog):
    written = content(annotation(5, [BOX]))
    written["categories"] += [{"id": 0, "name": "_background_"}, {"id": 99, "name": "__ignore__"}]
    path = write(tmp_path, written)
    assert list(training(path).classes) == list(SPOKEN)
    assert (
        "no class, as it is a word of tools for no class and is never annotated: _background_, __ignore__"
        in caplog.text
    )
    written["annotations"].append(annotation(0, [BOX]))
    path = write(tmp_path, written)
    assert len(training(path).classes) == len(SPOKEN) + 1, "somebody drew it"


@pytest.mark.parametrize(
    ("written", "tool"),
    [
        ({"version": "5.4", "shapes": [], "imagePath": "a.jpg"}, "labelme or X-AnyLabeling"),
        ({"a.jpg12": {"filename": "a.jpg", "size": 12, "regions": []}}, "the VGG Image Annotator"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "the VGG Image Annotator"),
        ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
        ({"size": {"height": 2, "width": 2}, "objects": [], "tags": []}, "Supervisely"),
        ([{"image_id": 1, "category_id": 1, "segmentation": [], "score": 0.9}], "COCO results"),
    ],
)
def test_files_of_other_formats_are_called_by_their_name(tmp_path, written, tool):
    with pytest.raises(ValueError, match=f"this is .*{tool}.*; export as COCO instance segmentation"):
        training(save_json(tmp_path / "a.json", written))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "is a Git LFS pointer"),
        ("<!DOCTYPE html><html></html>", "is a web page"),
        ("", "is empty"),
        ('{"info": {}, "licenses": []}', "no 'categories' in it; it has info, licenses"),
    ],
)
def test_a_file_that_is_no_annotation_file_is_named_for_what_it_is(tmp_path, written, message):
    (tmp_path / "a.json").write_text(written)
    with pytest.raises(ValueError, match=message):
        training(tmp_path / "a.json")


def test_annotations_marked_ignore_are_neither_asked_nor_judged(tmp_path, caplog, recipe):
    made = content(annotation(5, [BOX], ignore=1), annotation(10, [BOX]), annotation(15, None, ignore=True))
    path = write(tmp_path, made)
    for choices, _ in draws(training(path, "exhaustive=true"), recipe):
        assert choices == {"traffic light": True}
    item = build_val_dataset(f"own_coco:{path}|exhaustive=true", "nowhere")[0]
    assert (item.absent, item.partly) == ((), (0, 2))
    assert "marked 'ignore'" in caplog.text


def test_images_without_annotation_are_pointed_out_where_they_teach_absence(tmp_path, caplog):
    path = write(tmp_path, content(annotation(5, [BOX]), num_images=3))
    assert not training(path).notes
    training(path, "exhaustive=true")
    assert "2 of 3 images have no annotation" in caplog.text
    assert "remove those that nobody has annotated yet" in caplog.text
