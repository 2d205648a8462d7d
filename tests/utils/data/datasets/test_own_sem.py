import numpy as np
import pytest
from PIL import Image

from tests.utils.data.layouts import HEIGHT, WIDTH, blocks, save, seeded_image
from utils.common.label_values import IGNORE, NOTHING
from utils.data.registry import build_val_dataset, parse_entry
from utils.data.types import UnusableItemError

CLASSES = "ignore\nbolt\nnut\t hex nut\nnothing\nrust\n"
TURNED = 0x0112  # the EXIF tag of orientation


def write(root, labels, *, classes=CLASSES, folder=""):
    """my_data under `root`: one image and one label PNG for each of `labels`."""
    data = root / "my_data"
    for index, label in enumerate(labels):
        save(data / folder / f"images/{index}.png", seeded_image(index, *label.shape))
        save(data / folder / f"labels/{index}.png", label)
    data.mkdir(exist_ok=True)
    (data / "classes.txt").write_text(classes, encoding="utf-8")
    return data


def training(data, *fields):
    entry = parse_entry("|".join((f"own_sem:{data}", *fields)), "--dataset")
    return entry.open("nowhere", training=True)


def choices(sample, format):
    (answer,) = sample.conversations[0].answers
    return format.parse(answer)


def test_label_values_are_the_lines_of_the_class_list(tmp_path):
    data = write(tmp_path, [blocks([0, 1, 2, 3, 4, 255])])
    sample = training(data)[0]
    assert list(sample.classes) == ["bolt", "hex nut", "rust"]
    assert np.array_equal(np.unique(sample.label), [0, 1, 2, NOTHING, IGNORE])
    stripes = [sample.label[0, x] for x in (0, 6, 12, 18, 24, 30)]
    assert stripes == [IGNORE, 0, 1, NOTHING, 2, IGNORE]
    assert np.array_equal(sample.image, seeded_image(0))


def test_a_sample_asks_for_the_classes_of_the_label_and_rules_out_the_others(tmp_path, recipe):
    label = blocks([0, 1, 3, 1])
    dataset = training(write(tmp_path, [label]))
    denied = set()
    for seed in range(20):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        answers = dict(choices(sample, recipe.format))
        assert answers.pop("bolt")
        assert np.array_equal(sample.masks, [label == 1])
        assert not any(answers.values())
        denied |= answers.keys()
    assert denied == {"hex nut", "rust"}


def test_nothing_is_ruled_out_where_labels_are_not_exhaustive(tmp_path, recipe):
    dataset = training(write(tmp_path, [blocks([1, 2]), blocks([2, 3])]), "exhaustive=false")
    for seed in range(20):
        sample = dataset.draw(np.random.default_rng(seed), recipe)
        assert all(present for _, present in choices(sample, recipe.format))


def test_an_image_that_shows_none_of_the_classes_teaches_their_absence(tmp_path, recipe):
    data = write(tmp_path, [blocks([3])])
    sample = training(data).draw(np.random.default_rng(0), recipe)
    assert choices(sample, recipe.format)
    assert not any(present for _, present in choices(sample, recipe.format))
    assert sample.masks.shape == (0, HEIGHT, WIDTH)
    with pytest.raises(UnusableItemError, match="no pixel has a class"):
        training(data, "exhaustive=false").draw(np.random.default_rng(0), recipe)
    with pytest.raises(UnusableItemError, match="no pixel has a class; 255 is ignored"):
        training(write(tmp_path, [blocks([0, 255]), blocks([1])])).sample_of(
            0, np.random.default_rng(0), recipe
        )


def test_more_than_255_classes_are_written_as_16_bit_labels(tmp_path, recipe):
    names = "".join(f"part {number}\n" for number in range(400))
    label = np.repeat(np.array([7, 255, 256, 399], dtype=np.uint16), 8)[None].repeat(HEIGHT, 0)
    label[0, 0] = 65535
    dataset = training(write(tmp_path, [label], classes=names))
    assert np.array_equal(dataset[0].label, label)
    sample = dataset.draw(np.random.default_rng(0), recipe)
    for name, mask in zip(
        [n for n, there in choices(sample, recipe.format) if there], sample.masks, strict=True
    ):
        assert np.array_equal(mask, label == int(name.removeprefix("part ")))


def test_a_divided_folder_trains_on_train_and_evaluates_val(tmp_path):
    write(tmp_path, [blocks([1])], folder="train")
    write(tmp_path, [blocks([1]), blocks([2])], folder="val")
    data = write(tmp_path, [blocks([1])] * 3, folder="factory b")
    assert (len(training(data)), training(data).split) == (1, "train")
    assert len(build_val_dataset(f"own_sem:{data}", ".")) == 2
    assert len(build_val_dataset(f"own_sem:{data}|train", ".")) == 1
    assert len(build_val_dataset(f"own_sem:{data}|factory b|exhaustive=false", ".")) == 3
    with pytest.raises(
        FileNotFoundError, match=r"\|test needs the folder .*test; .* holds classes.txt, factory b"
    ):
        training(data, "test")


def test_a_folder_that_is_not_divided_is_used_whole(tmp_path):
    data = write(tmp_path, [blocks([1]), blocks([2])])
    assert len(training(data)) == len(build_val_dataset(f"own_sem:{data}", ".")) == 2
    assert training(data).split == "all"
    with pytest.raises(FileNotFoundError, match=r"has no splits: leave out \|val to use it as a whole"):
        build_val_dataset(f"own_sem:{data}|val", ".")


def test_training_data_without_a_held_out_part_is_not_evaluated_by_mistake(tmp_path):
    data = write(tmp_path, [blocks([1])], folder="train")
    with pytest.raises(FileNotFoundError, match=r"\|val needs the folder .*val; .* holds classes.txt, train"):
        build_val_dataset(f"own_sem:{data}", ".")


# ----------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (seeded_image(1)[..., 0], {}),  # grey
        (seeded_image(1)[..., 0].astype(np.uint16) * 257, {}),  # 16 bits
        (np.dstack([seeded_image(1), seeded_image(2)[..., :1]]), {}),  # transparent
    ],
)
def test_masks_line_up_with_any_kind_of_image(tmp_path, recipe, pixels, options):
    data = write(tmp_path, [blocks([1, 2])])
    save(data / "images/0.png", pixels, **options)
    sample = training(data).draw(np.random.default_rng(0), recipe)
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    named = [name for name, present in choices(sample, recipe.format) if present]
    for name, mask in zip(named, sample.masks, strict=True):
        assert np.array_equal(mask, blocks([1, 2]) == {"bolt": 1, "hex nut": 2}[name])


def test_masks_line_up_with_a_cmyk_image(tmp_path):
    data = write(tmp_path, [blocks([1, 2])])
    red = Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30))
    red.paste((30, 30, 200), (WIDTH // 2, 0, WIDTH, HEIGHT))
    red.convert("CMYK").save(data / "images/0.jpg", quality=95)
    (data / "images/0.png").unlink()
    sample = training(data)[0]
    assert (sample.image[sample.label == 0, 0] > 150).all()
    assert (sample.image[sample.label == 1, 2] > 150).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_line_up_with_an_image_that_the_camera_turned(tmp_path, orientation):
    """The label is that of the upright image: dark where the class is, light elsewhere."""
    upright = np.full((30, 20, 3), 220, dtype=np.uint8)
    upright[3:12, 2:9] = 10
    label = (upright[..., 0] < 100).astype(np.uint8)
    turns = {3: 2, 6: 1, 8: -1}[orientation]  # quarter turns from upright to stored
    exif = Image.Exif()
    exif[TURNED] = orientation
    data = write(tmp_path, [label], classes="nothing\nhole\n")
    save(data / "images/0.png", np.rot90(upright, turns).copy(), exif=exif)
    sample = training(data)[0]
    assert np.array_equal(sample.image, upright)
    assert np.array_equal(sample.label == 0, upright[..., 0] < 100)
