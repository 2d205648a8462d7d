import numpy as np
import pytest

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
from utils.data.datasets.coco_parts import read_categories, speakable
from utils.data.datasets.paco_lvis import PacoLvis
from utils.data.datasets.pascal_part import PascalPart
from utils.data.types import UnusableItemError

CATEGORIES = [
    {"id": 7, "name": "drum_(musical_instrument)"},
    {"id": 3, "name": "drum_(musical_instrument):rim"},
    {"id": 9, "name": "laptop_computer:base_panel"},
    {"id": 5, "name": "dog"},
]
BLOB = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4
BOX = np.zeros((HEIGHT, WIDTH), dtype=bool)
BOX[2:10, 3:12] = True


def image(number, **fields):
    return {"id": number, "file_name": f"train2017/{number}.jpg", "height": HEIGHT, "width": WIDTH, **fields}


def annotation(image_id, category_id, segmentation):
    return {"id": 1, "image_id": image_id, "category_id": category_id, "segmentation": segmentation}


def write_paco(root, images, annotations, categories=CATEGORIES):
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = save_json(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", content)
    for entry in images:
        if isinstance(entry, dict) and "file_name" in entry:
            save(root / "coco" / entry["file_name"], seeded_image(1))
    return path


def test_categories_are_spoken_without_what_tells_meanings_apart(tmp_path):
    parts, class_of = read_categories(CATEGORIES, tmp_path)
    assert parts == [("drum", ""), ("drum", "rim"), ("laptop computer", "base panel"), ("dog", "")]
    assert class_of == {7: 0, 3: 1, 9: 2, 5: 3}
    assert speakable("Car_(automobile)") == "car"


def test_parts_are_called_in_two_ways_and_masks_follow(tmp_path, recipe):
    rle = uncompressed_rle(~BLOB)
    write_paco(tmp_path, [image(1)], [annotation(1, 7, compressed_rle(BLOB)), annotation(1, 3, rle)])
    data = PacoLvis(tmp_path, "train")
    assert list(data.classes) == ["drum", "drum rim", "laptop computer base panel", "dog"]
    assert data.classes.official[1] == "drum_(musical_instrument):rim"
    expected = {"drum": BLOB, "drum rim": ~BLOB, "the rim of the drum": ~BLOB}
    spoken = set()
    for seed in range(20):
        sample = data.draw(np.random.default_rng(seed), recipe)
        named = [name for name, present in recipe.format.parse(sample.conversations[0].answers[0]) if present]
        assert len(named) == 2
        for name, mask in zip(named, sample.masks, strict=True):
            assert np.array_equal(mask, expected[name])
        spoken |= set(named)
    assert spoken == expected.keys()


def test_annotations_of_a_class_are_united_and_overlaps_count_once(tmp_path):
    polygons = [box_polygon(3, 2, 9, 8), box_polygon(5, 4, 4, 4)]  # the second lies in the first
    write_paco(
        tmp_path,
        [image(1)],
        [
            annotation(1, 7, polygons),
            annotation(1, 7, compressed_rle(BLOB)),
            annotation(1, 5, [[1, 1, 5, 5]]),
        ],
    )
    _, masks = PacoLvis(tmp_path, "train").read(0)
    assert np.array_equal(masks[0], BOX | BLOB)
    assert masks[0].max() == 1
    assert not masks[3].any()  # two points are no area


def test_a_class_without_pixels_is_not_asked_for(tmp_path, recipe):
    outside = [box_polygon(100, 100, 5, 5)]
    write_paco(tmp_path, [image(1)], [annotation(1, 7, compressed_rle(BLOB)), annotation(1, 5, outside)])
    sample = PacoLvis(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    assert recipe.format.parse(sample.conversations[0].answers[0]) == [("drum", True)]
    write_paco(tmp_path, [image(1)], [annotation(1, 5, outside)])
    with pytest.raises(UnusableItemError, match=r"1.jpg: no class has a mask"):
        PacoLvis(tmp_path, "train").draw(np.random.default_rng(0), recipe)


def test_only_negative_categories_are_absent_and_partly_annotated_ones_are_not_asked(tmp_path):
    lists = {"neg_category_ids": [5, 7, 99], "not_exhaustive_category_ids": [3]}
    annotations = [annotation(1, 7, compressed_rle(BLOB)), annotation(1, 3, compressed_rle(BLOB))]
    write_paco(
        tmp_path, [image(1, **lists), image(2)], [*annotations, annotation(2, 5, compressed_rle(BLOB))]
    )
    data = PacoLvis(tmp_path, "train")
    assert data.absent_classes(0) == [3]  # the drum (7) has a mask, 99 is no category here
    assert data.read(0)[1].keys() == {0}
    assert data.absent_classes(1) == []


def test_the_whole_list_can_be_asked(tmp_path):
    from model.text.format import SequenceFormat
    from utils.data.types import Recipe

    write_paco(tmp_path, [image(1, neg_category_ids=[5])], [annotation(1, 7, compressed_rle(BLOB))])
    whole = Recipe(format=SequenceFormat.named("paper", random_classes_list=False))
    sample = PacoLvis(tmp_path, "train").draw(np.random.default_rng(0), whole)
    choices = whole.format.parse(sample.conversations[0].answers[0])
    assert choices == [("drum", True), ("dog", False)]


def test_pascal_part_reads_its_own_images(tmp_path):
    entry = {"id": 1, "file_name": "2008_1.jpg", "height": HEIGHT, "width": WIDTH}
    content = {
        "images": [entry],
        "annotations": [annotation(1, 1, [box_polygon(3, 2, 9, 8)])],
        "categories": [{"id": 1, "name": "aeroplane:wing"}],
    }
    save_json(tmp_path / "vlpart/pascal_part/train.json", content)
    with pytest.raises(FileNotFoundError, match=r"pascal_part needs .*VOC2010/JPEGImages"):
        PascalPart(tmp_path, "train")
    save(tmp_path / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_1.jpg", seeded_image(1))
    data = PascalPart(tmp_path, "train")
    assert data.absent_classes(0) == []
    assert np.array_equal(data.read(0)[1][0], BOX)
    with pytest.raises(ValueError, match=r"for training only"):
        data[0]


def test_what_cannot_be_used_is_dropped_and_counted(tmp_path):
    images = [image(1), image(2), {"id": 3}, image(4, width="wide"), "five", image(6)]
    annotations = [
        annotation(1, 7, compressed_rle(BLOB)),
        annotation(1, 99, compressed_rle(BLOB)),
        {"image_id": 1, "category_id": 7},
        annotation(6, 7, compressed_rle(BLOB)),
    ]
    write_paco(tmp_path, images, annotations)
    (tmp_path / "coco/train2017/6.jpg").unlink()
    data = PacoLvis(tmp_path, "train")
    assert [item.path.name for item in data.items] == ["1.jpg"]
    reasons = "\n".join(data.dropped)
    for part in (
        "annotation 1: missing or malformed 99", "annotation 2: missing or malformed 'segmentation'",
        "2.jpg: no class is annotated in full", "image 2: missing or malformed 'file_name'",
        "image 3: height and width are (24, 'wide')", "image 4: missing or malformed", "6.jpg: not there",
    ):  # fmt: skip
        assert part in reasons
    assert len(data.dropped) == 7


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "annotations of 'dog': a polygon lists x and y in turn"),
        ({"size": [2, 2], "counts": [4]}, r"run-length code of size \(2, 2\)"),
        ("polygon", "a list of polygons or a run-length code"),
    ],
)
def test_segmentations_that_are_none_are_named(tmp_path, recipe, segmentation, message):
    write_paco(tmp_path, [image(1)], [annotation(1, 5, segmentation)])
    with pytest.raises(UnusableItemError, match=message):
        PacoLvis(tmp_path, "train").draw(np.random.default_rng(0), recipe)


def test_an_image_of_another_size_is_named(tmp_path, recipe):
    write_paco(tmp_path, [image(1)], [annotation(1, 5, compressed_rle(BLOB))])
    save(tmp_path / "coco/train2017/1.jpg", seeded_image(1, 8, 8))
    with pytest.raises(UnusableItemError, match=r"1.jpg: is \(8, 8\), annotated as \(24, 32\)"):
        PacoLvis(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    (tmp_path / "coco/train2017/1.jpg").write_bytes(b"")
    with pytest.raises(UnusableItemError, match=r"1.jpg: cannot be decoded"):
        PacoLvis(tmp_path, "train").draw(np.random.default_rng(0), recipe)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1}], "a category has 'id' and 'name'"),
        ([{"id": 1, "name": "dog"}, {"id": 1, "name": "cat"}], "two categories have the id 1"),
        (
            [{"id": 1, "name": "mouse_(animal)"}, {"id": 2, "name": "Mouse_(animal)"}],
            "'mouse_\\(animal\\)' and 'Mouse_\\(animal\\)' have the same",
        ),
        ([], "no categories"),
    ],
)
def test_category_lists_that_are_none_are_refused(tmp_path, categories, message):
    write_paco(tmp_path, [image(1)], [], categories)
    with pytest.raises(ValueError, match=rf"paco_lvis_v1_train.json: .*{message}"):
        PacoLvis(tmp_path, "train")


def test_a_file_with_a_missing_key_is_refused(tmp_path):
    path = write_paco(tmp_path, [image(1)], [])
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"no 'categories' in it"):
        PacoLvis(tmp_path, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"paco_lvis needs .*paco_lvis_v1_train.json"):
        PacoLvis(tmp_path, "train")


def test_numbers_and_texts_are_the_same_ids(tmp_path):
    categories = [category | {"id": str(category["id"])} for category in CATEGORIES]
    images = [
        image(1.0, file_name="train2017/1.jpg", neg_category_ids=["5"], not_exhaustive_category_ids=[9.0])
    ]
    write_paco(tmp_path, images, [annotation("1", 7.0, compressed_rle(BLOB))], categories)
    (item,) = PacoLvis(tmp_path, "train").items
    assert list(item.segmentations) == [0]
    assert item.absent == (3,)


def test_things_of_one_name_keep_what_tells_them_apart(tmp_path):
    names = (
        "bow_(weapon)",
        "bow_(weapon):string",
        "bow_(decorative_ribbons)",
        "drum_(musical_instrument):rim",
    )
    parts, _ = read_categories([{"id": k, "name": name} for k, name in enumerate(names)], tmp_path)
    weapon, ribbons = "bow (weapon)", "bow (decorative ribbons)"
    assert parts == [(weapon, ""), (weapon, "string"), (ribbons, ""), ("drum", "rim")]
