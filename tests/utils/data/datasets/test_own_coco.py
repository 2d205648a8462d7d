import numpy as np
import pytest

from tests.utils.data.coco_files import (
    BOX,
    SPOKEN,
    annotation,
    box,
    content,
    draws,
    spoiled,
    training,
    write,
)
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    box_polygon,
    compressed_rle,
    save,
    save_json,
    seeded_image,
    uncompressed_rle,
)
from utils.common.label_values import IGNORE, NOTHING
from utils.data.registry import build_val_dataset
from utils.data.types import UnusableItemError


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
        assert np.array_equal(dataset[0].image, seeded_image(1))


@pytest.mark.parametrize(
    ("name", "image_dir", "fields"),
    [
        ("boats.json", "", ()),
        ("boats.json", "images", ()),
        ("annotations/boats.json", "images", ()),
        ("boats.json", "photos/2024", ("images=photos/2024",)),
    ],
)
def test_images_are_found_beside_the_file_in_images_or_where_told(
    tmp_path, monkeypatch, name, image_dir, fields
):
    write(tmp_path, content(annotation(5, [BOX])), name, image_dir)
    monkeypatch.chdir(tmp_path)
    assert len(training(name, *fields)) == 1


def test_images_that_are_nowhere_are_an_error_that_says_where_it_looked(tmp_path):
    path = save_json(tmp_path / "boats.json", content(annotation(5, [BOX])))
    with pytest.raises(
        FileNotFoundError,
        match=r"no image of it, such as '1.png', is in .*/images.* holds boats.json.*; .*images=FOLDER",
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
            r"annotations\[0\]: 'category_id' is \[5\]; it is an id",
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
    save(tmp_path / "1.png", seeded_image(1))
    with pytest.raises(ValueError, match=message):
        training(path)


def test_a_missing_image_and_a_box_without_mask_are_dropped_and_counted(tmp_path):
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
        ("1 2 3", "a segmentation is a list of polygons or a run-length code, got '1 2 3'"),
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


def test_an_image_of_another_size_than_annotated_is_named(tmp_path, recipe):
    path = write(tmp_path, content(annotation(5, [BOX]), height=48))
    with pytest.raises(UnusableItemError, match=r"1.png: is \(24, 32\), annotated as \(48, 32\)"):
        training(path).draw(np.random.default_rng(0), recipe)
