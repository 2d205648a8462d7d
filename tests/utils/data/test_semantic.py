import numpy as np
import pytest
from PIL import Image

from model.text.format import SequenceFormat
from tests.utils.data.layouts import (
    HEIGHT,
    WIDTH,
    blocks,
    save,
    seeded_image,
    write_ade20k,
    write_cityscapes,
    write_cocostuff,
)
from utils.common.label_values import IGNORE
from utils.data.datasets.ade20k import Ade20k
from utils.data.datasets.cityscapes import Cityscapes
from utils.data.datasets.cocostuff import CocoStuff
from utils.data.semantic import values_in
from utils.data.types import Recipe, UnusableItemError

NOISE = np.random.default_rng(0).integers(0, 151, (HEIGHT, WIDTH), dtype=np.uint8)

# reader, writer, label values on disk, class ids expected
READERS = [
    (Ade20k, write_ade20k, [0, 1, 13, 150], [IGNORE, 0, 12, 149]),
    (CocoStuff, write_cocostuff, [255, 0, 12, 11, 181], [IGNORE, 0, 11, IGNORE, 170]),
    (Cityscapes, write_cityscapes, [0, 7, 6, 33, 26, 255], [IGNORE, 0, IGNORE, 18, 13, IGNORE]),
]


def choices(sample, format):
    """(class name, present?) of the only answer."""
    (answer,) = sample.conversations[0].answers
    return format.parse(answer)


@pytest.mark.parametrize(("reader", "write", "values", "class_ids"), READERS)
def test_labels_on_disk_become_class_ids(tmp_path, reader, write, values, class_ids):
    write(tmp_path, [blocks(values)])
    dataset = reader(tmp_path, "train")
    assert len(dataset) == 1
    sample = dataset[0]
    assert np.array_equal(sample.label, blocks(class_ids))
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    assert list(sample.classes) == list(reader.classes)


@pytest.mark.parametrize(("reader", "write", "values", "class_ids"), READERS)
def test_mask_k_is_the_region_of_the_class_named_before_seg_k(
    tmp_path, recipe, reader, write, values, class_ids
):
    write(tmp_path, [blocks(values)])
    dataset = reader(tmp_path, "train")
    for seed in range(10):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        named = [name for name, present in choices(sample, recipe.format) if present]
        assert sorted(named) == sorted(dataset.classes[c] for c in set(class_ids) - {IGNORE})
        for name, mask in zip(named, sample.masks, strict=True):
            assert np.array_equal(mask, blocks(class_ids) == dataset.classes.index(name))


@pytest.mark.parametrize("switch", ["sequence_augmentation", "order_following", "random_classes_list"])
def test_masks_follow_the_answer_with_each_strategy_off(tmp_path, switch):
    format = SequenceFormat.named("paper", **{switch: False})
    write_ade20k(tmp_path, [NOISE])
    dataset = Ade20k(tmp_path, "train")
    sample = dataset.draw(np.random.default_rng(0), Recipe(format=format, num_all_classes=60))
    answered = choices(sample, format)
    assert (
        len(answered)
        == {"sequence_augmentation": 60, "order_following": 60, "random_classes_list": 150}[switch]
    )
    named = [name for name, present in answered if present]
    for name, mask in zip(named, sample.masks, strict=True):
        assert np.array_equal(mask, dataset.classes.index(name) + 1 == NOISE)


def test_no_neg_for_a_class_that_the_label_does_not_rule_out(tmp_path, recipe):
    label = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    label[:, 5:] = 3
    label[0, 0] = 42  # one pixel is enough to be present
    write_ade20k(tmp_path, [label, NOISE])
    dataset = Ade20k(tmp_path, "train")
    few = Recipe(format=recipe.format, num_all_classes=5)
    for seed in range(30):
        for wanted in (recipe, few):
            sample = dataset.draw(np.random.default_rng(seed), wanted)
            drawn = label if "00000000." in sample.source else NOISE
            present = {dataset.classes[value - 1] for value in np.unique(drawn) if value}
            denied = {name for name, there in choices(sample, recipe.format) if not there}
            assert not denied & present
            assert len(choices(sample, recipe.format)) <= wanted.num_all_classes


def test_likely_negatives_are_classes_of_other_images(tmp_path, recipe):
    write_ade20k(tmp_path, [blocks([1, 2]), blocks([149, 150])])
    dataset = Ade20k(tmp_path, "train")
    wanted = Recipe(format=recipe.format, num_all_classes=4, likely_negatives=1.0)
    names = {dataset.classes[k] for k in (0, 1, 148, 149)}
    asked = [
        {name for name, _ in choices(dataset.draw(np.random.default_rng(seed), wanted), recipe.format)}
        for seed in range(20)
    ]
    # Whenever the image that lends its classes is the other one, no class is asked that neither has.
    assert sum(classes <= names for classes in asked) > 5
    evenly = dataset.draw(np.random.default_rng(1), recipe)
    assert not {name for name, _ in choices(evenly, recipe.format)} <= names


def test_samples_depend_on_the_rng_alone(tmp_path, recipe):
    write_ade20k(tmp_path, [blocks([1, 2]), blocks([3, 4]), blocks([5])])
    dataset = Ade20k(tmp_path, "train")
    first, other, again = (dataset.draw(np.random.default_rng(seed), recipe) for seed in (1, 2, 1))
    assert first.conversations == again.conversations
    assert np.array_equal(first.image, again.image)
    assert first.conversations != other.conversations


def test_second_choice_layouts_are_read(tmp_path):
    write_ade20k(tmp_path, [blocks([1])])
    write_cocostuff(tmp_path, [blocks([1])], "val2017")
    (tmp_path / "ade20k").rename(tmp_path / "ADEChallengeData2016")
    (tmp_path / "coco/stuffthingmaps_trainval2017").mkdir()
    (tmp_path / "cocostuff/val2017").rename(tmp_path / "coco/stuffthingmaps_trainval2017/val2017")
    assert len(Ade20k(tmp_path, "train")) == 1
    assert len(CocoStuff(tmp_path, "val")) == 1


@pytest.mark.parametrize("reader", [Ade20k, CocoStuff, Cityscapes])
def test_a_missing_data_set_says_what_was_looked_for_and_what_is_there(tmp_path, reader):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{reader.name} needs .*{reader.name}.*holds holiday"):
        reader(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="dataset_dir"):
        reader(tmp_path / "nowhere", "train")


def test_an_empty_folder_is_an_error(tmp_path):
    for folder in ("images", "annotations"):
        (tmp_path / "ade20k" / folder / "validation").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"ade20k\|val: no usable item"):
        Ade20k(tmp_path, "val")


def test_images_without_a_label_are_dropped_counted_and_logged(tmp_path, caplog):
    write_cityscapes(tmp_path, [blocks([7]), blocks([8])])
    next((tmp_path / "cityscapes/gtFine/train/ulm").glob("ulm_000000*_labelIds.png")).unlink()
    dataset = Cityscapes(tmp_path, "train")
    assert len(dataset) == 1
    assert "ulm_000000_000019_leftImg8bit.png: no label" in dataset.dropped[0]
    assert "1 items dropped, 1 left" in caplog.text


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (blocks([1, 151]), r"label values \[151\] are not in ade20k's class list"),
        (blocks([1, 2]).astype(np.uint16) * 400, r"label values \[400, 800\]"),
        (blocks([0]), "no pixel has a class"),
        (blocks([1], 10, 10), r"label is \(10, 10\), its image \(24, 32\)"),
    ],
)
def test_unusable_labels_are_named(tmp_path, recipe, label, message):
    write_ade20k(tmp_path, [blocks([1])])
    path = save(next((tmp_path / "ade20k/annotations/training").iterdir()), label)
    with pytest.raises(UnusableItemError, match=message) as caught:
        Ade20k(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    assert caught.value.path == str(path)


def test_a_broken_image_is_named_once(tmp_path, recipe):
    write_ade20k(tmp_path, [blocks([1])])
    path = next((tmp_path / "ade20k/images/training").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnusableItemError) as caught:
        Ade20k(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    assert str(caught.value).count(path.name) == 1
    assert "cannot be decoded" in caught.value.reason


def test_masks_line_up_with_a_rotated_image(tmp_path, recipe):
    """A label of the upright image goes with the upright image, one of the stored pixels with those."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, label in (("upright", blocks([1, 2], 32, 24)), ("stored", blocks([1, 2], 24, 32))):
        save(tmp_path / f"ade20k/images/training/{name}.png", seeded_image(1), exif=exif)
        save(tmp_path / f"ade20k/annotations/training/{name}.png", label)
    stored, upright = Ade20k(tmp_path, "train")
    assert np.array_equal(stored.image, seeded_image(1))
    assert np.array_equal(upright.image, np.rot90(seeded_image(1), -1))


def test_unknown_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ade20k has no split 'test'; known: train, val"):
        Ade20k(tmp_path, "test")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("below", [None, 1, 150, 256, 5000])
def test_values_in_a_label_are_those_that_sorting_finds(dtype, below):
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (7, 9)).astype(dtype)
    labels[0] = (0, 1, 149, 150, 151, 255, np.iinfo(dtype).max, np.iinfo(dtype).max - 1, 0)
    expected = [value for value in np.unique(labels).tolist() if below is None or value < below]
    assert values_in(labels, below) == expected
