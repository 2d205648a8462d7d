import numpy as np
import pytest

from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    compressed_rle,
    picture,
    save,
    save_json,
    uncompressed_rle,
)
from utils.data.registry import build_val_dataset, parse_entry
from utils.data.types import IGNORE, NOTHING, UnusableItemError

BOX = box_polygon(2, 3, 10, 8)
NAMES = ("Boat", "traffic_light", "gull_(bird)")
SPOKEN = ("boat", "traffic light", "gull")


def box(x, y, width, height):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def annotation(category_id, segmentation, image_id=1, **more):
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, **more}


def content(*annotations, num_images=1, **of_image):
    images = [{"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH, **of_image}
              for k in range(1, num_images + 1)]  # fmt: skip
    categories = [{"id": 5 * k, "name": name} for k, name in enumerate(NAMES, start=1)]  # ids with gaps
    return {"images": images, "annotations": list(annotations), "categories": categories}


def write(root, annotations, name="boats.json", image_dir=""):
    path = save_json(root / name, annotations)
    for image in annotations["images"]:
        save(root / image_dir / image["file_name"], picture(image["id"]))
    return path


def training(path, *fields):
    return parse_entry("|".join((f"own_coco:{path}", *fields)), "--dataset").open("nowhere", training=True)


def draws(dataset, recipe, count=20):
    """Samples, each with {class name: present?} and {class name: mask}."""
    for seed in range(count):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        (answer,) = sample.conversations[0].answers
        choices = recipe.format.parse(answer)
        named = [name for name, present in choices if present]
        yield dict(choices), dict(zip(named, sample.masks, strict=True))


def test_a_class_is_the_union_of_its_annotations_whatever_their_form(tmp_path, recipe):
    path = write(tmp_path, content(
        annotation(5, [BOX, box_polygon(20, 3, 4, 4)]),  # two parts
        annotation(5, compressed_rle(box(8, 5, 10, 10))),  # overlaps the first part
        annotation(10, uncompressed_rle(box(0, 20, 32, 4)), iscrowd=1),
    ))  # fmt: skip
    boat = box(2, 3, 10, 8) | box(20, 3, 4, 4) | box(8, 5, 10, 10)
    for _, masks in draws(training(path), recipe, 5):
        assert masks.keys() == {"boat", "traffic light"}
        assert np.array_equal(masks["boat"], boat)
        assert np.array_equal(masks["traffic light"], box(0, 20, 32, 4))


def test_only_what_annotators_ruled_out_is_taught_as_absent(tmp_path, recipe):
    lvis = content(annotation(5, [BOX]), neg_category_ids=[10, 5])  # 5 is drawn: not absent, whatever is said
    plain, exhaustive = content(annotation(5, [BOX])), ("exhaustive=true",)
    for made, fields, expected in (
        (lvis, (), {SPOKEN[1]}),
        (plain, (), set()),
        (plain, exhaustive, {*SPOKEN[1:]}),
    ):
        denied = set()
        for choices, masks in draws(training(write(tmp_path, made), *fields), recipe):
            assert masks.keys() == {"boat"}
            denied |= choices.keys() - masks.keys()
        assert denied == expected


def test_classes_that_are_drawn_only_in_part_are_not_asked(tmp_path, recipe):
    partly = content(annotation(5, [BOX]), annotation(10, [BOX]), not_exhaustive_category_ids=[5, 15])
    dataset = training(write(tmp_path, partly), "exhaustive=true")
    assert all(choices.keys() == {"traffic light"} for choices, _ in draws(dataset, recipe, 5))


def test_images_without_annotations_are_asked_about_only_if_annotation_is_exhaustive(tmp_path, recipe):
    path = write(tmp_path, content(annotation(5, [BOX]), num_images=2))
    assert len(training(path)) == 1
    exhaustive = training(path, "exhaustive=true")
    assert len(exhaustive) == 2
    assert any(not masks and choices for choices, masks in draws(exhaustive, recipe))
    with pytest.raises(ValueError, match=r"no image of .* has a class that is known .* say exhaustive=true"):
        training(write(tmp_path, content()))


def test_evaluation_is_semantic_small_objects_on_top(tmp_path):
    path = write(
        tmp_path, content(annotation(10, [box_polygon(4, 4, 2, 2)]), annotation(5, [BOX]), num_images=2)
    )
    for field, outside in (("exhaustive=true", NOTHING), ("exhaustive=false", IGNORE)):
        dataset = build_val_dataset(f"own_coco:{path}|{field}", ".")
        expected = np.where(box(2, 3, 10, 8) == 1, 0, outside)
        expected[4:6, 4:6] = 1
        assert np.array_equal(dataset[0].label, expected)
        assert (dataset[1].label == outside).all()
        assert list(dataset[0].classes) == list(SPOKEN)
        assert np.array_equal(dataset[0].image, picture(1))


@pytest.mark.parametrize(
    ("name", "image_dir", "fields"),
    [
        ("boats.json", "", ()),
        ("boats.json", "images", ()),
        ("annotations/boats.json", "images", ()),
        ("boats.json", "photos/2024", ("images=photos/2024",)),
    ],
)
def test_pictures_are_found_beside_the_file_in_images_or_where_told(
    tmp_path, monkeypatch, name, image_dir, fields
):
    write(tmp_path, content(annotation(5, [BOX])), name, image_dir)
    monkeypatch.chdir(tmp_path)
    assert len(training(name, *fields)) == 1


def test_pictures_that_are_nowhere_are_an_error_that_says_where_it_looked(tmp_path):
    path = save_json(tmp_path / "boats.json", content(annotation(5, [BOX])))
    with pytest.raises(
        FileNotFoundError, match=r"no picture of it, such as '1.png', is in .*/images; .*images=FOLDER"
    ):
        training(path)


def test_a_folder_has_a_file_for_each_split(tmp_path):
    write(tmp_path, content(annotation(5, [BOX])), "train.json")
    write(tmp_path, content(annotation(5, [BOX]), num_images=2), "val.json")
    assert len(training(tmp_path)) == 1
    assert len(build_val_dataset(f"own_coco:{tmp_path}", ".")) == 2
    assert len(build_val_dataset(f"own_coco:{tmp_path}|train", ".")) == 1
    with pytest.raises(
        FileNotFoundError, match=r"needs .*test.json for its split 'test'; .* holds .*train.json"
    ):
        training(tmp_path, "test")
    with pytest.raises(ValueError, match="a file has no splits; name the file of the split instead"):
        training(tmp_path / "train.json", "val")


# ----------------------------------------------------------------------------------------- bad input


def spoiled(key, position, **changes):
    """A file in which one entry has `changes`; a value None removes the key."""
    made = content(annotation(5, [BOX]), num_images=2)
    made[key][position] = {k: v for k, v in (made[key][position] | changes).items() if v is not None}
    return made


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"images": [], "annotations": []}, "boats.json: no 'categories' in it"),
        ({"images": {}, "annotations": [], "categories": []}, "'images' must be a list, got dict"),
        ({"images": [], "annotations": [], "categories": []}, "no categories; they are the classes"),
        (spoiled("images", 1, file_name=None), r"images\[1\] has no 'file_name'; in COCO instances each"),
        (spoiled("images", 1, height="24"), r"images\[1\]: 'height' is '24'; it is a number of pixels"),
        (spoiled("images", 1, id=1), "images: id 1 comes twice"),
        (spoiled("annotations", 0, category_id=None), r"annotations\[0\] has no 'category_id'"),
        (
            spoiled("annotations", 0, category_id=[5]),
            r"annotations\[0\]: 'category_id' is \[5\], not of the kind",
        ),
        (
            spoiled("annotations", 0, category_id=6),
            r"annotations\[0\] has category_id 6, which no entry of categories",
        ),
        (
            spoiled("annotations", 0, image_id=9),
            r"annotations\[0\] has image_id 9, which no entry of images has",
        ),
        (spoiled("categories", 2, id=5), "categories: id 5 comes twice"),
        (spoiled("categories", 2, name="boat "), "classes 'Boat' and 'boat ' have the same name"),
    ],
)
def test_files_that_do_not_hold_together_are_refused(tmp_path, made, message):
    path = save_json(tmp_path / "boats.json", made)
    save(tmp_path / "1.png", picture(1))
    with pytest.raises(ValueError, match=message):
        training(path)


def test_a_missing_picture_and_a_box_without_mask_are_dropped_and_counted(tmp_path):
    made = content(*(annotation(5, [BOX], image_id) for image_id in (1, 2, 3)), num_images=3)
    del made["annotations"][1]["segmentation"]
    path = write(tmp_path, made)
    (tmp_path / "1.png").unlink()
    dataset = training(path)
    assert len(dataset) == 1
    assert dataset.dropped == [
        f"{tmp_path}/1.png: is not there, but in {path}",
        f"{tmp_path}/2.png: an annotation of it in {path} has no segmentation; draw a mask, a box is none",
    ]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[2, 2, 10, 10]], r"a polygon of 2 points \[2, 2, 10, 10\]; it needs three"),
        ([BOX, [2, 2, 10, 10]], "a polygon of 2 points"),
        (
            [box_polygon(40, 3, 5, 5)],
            "x 40 to 45, y 3 to 8 lies outside the image, which is 32 wide and 24 high",
        ),
        ([box_polygon(0, -9, 5, 5)], "y -9 to -4 lies outside the image"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x and y in turn"),
        (
            {"size": [WIDTH, HEIGHT], "counts": [768]},
            r"run-length code of size \(32, 24\), image of \(24, 32\)",
        ),
        ({"size": [HEIGHT, WIDTH], "counts": [768]}, "the mask covers no pixel"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 20]}, "add up to 30, not to 768 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": compressed_rle(box(2, 3, 9, 9))["counts"][:-1]}, "run"),
        ("1 2 3", "a segmentation is a list or a run-length code"),
    ],
)
def test_masks_that_cannot_be_right_are_named_with_their_image(tmp_path, recipe, segmentation, message):
    path = write(tmp_path, content(annotation(10, segmentation)))
    with pytest.raises(
        UnusableItemError, match=f"a mask of 'traffic_light' in .*boats.json: .*{message}"
    ) as caught:
        training(path).draw(np.random.default_rng(0), recipe)
    assert caught.value.path == str(tmp_path / "1.png")


def test_a_polygon_that_sticks_out_is_cut_at_the_border(tmp_path, recipe):
    path = write(tmp_path, content(annotation(5, [box_polygon(-5, 20, 10, 10)])))
    ((_, masks),) = draws(training(path), recipe, 1)
    assert np.array_equal(masks["boat"], box(0, 20, 5, 4))


def test_a_picture_of_another_size_than_annotated_is_named(tmp_path, recipe):
    path = write(tmp_path, content(annotation(5, [BOX]), height=48))
    with pytest.raises(UnusableItemError, match=r"1.png: is \(24, 32\), annotated as \(48, 32\)"):
        training(path).draw(np.random.default_rng(0), recipe)


# ------------------------------------------------------------------------------- what tools make of the format


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
        "no class, as it is labelme's word for none and is never annotated: _background_, __ignore__"
        in caplog.text
    )
    written["annotations"].append(annotation(0, [BOX]))
    path = write(tmp_path, written)
    assert len(training(path).classes) == len(SPOKEN) + 1, "somebody drew it"
