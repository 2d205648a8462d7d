import json
import re

import numpy as np
import pytest

from tests.utils.data.layouts import HEIGHT, WIDTH, save, save_json, seeded_image
from utils.data.datasets.openimages import OpenImages
from utils.data.tools.openimages_index import build_index, main
from utils.data.types import UnusableItemError

LEFT = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
LEFT[:, : WIDTH // 2] = 255
TOP = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
TOP[: HEIGHT // 2] = 255
INDEX = {
    "categories": ["Suit", "street light", "tie"],
    "d0ed": {"suit": ["d/d0ed_a.png", "d/d0ed_b.png"], "Street Light": ["d/d0ed_c.png"]},
}


def write(root, index=INDEX, negatives=None, masks=(LEFT, TOP, LEFT)):
    folder = root / "OpenImageV6"
    save_json(folder / "train_mask.json", index)
    if negatives is not None:
        save_json(folder / "train_negatives.json", negatives)
    for letter, mask in zip("abc", masks, strict=True):
        save(folder / f"train-masks/d/d0ed_{letter}.png", mask)
    save(folder / "folder_train/d0/d0ed.jpg", seeded_image(0))
    return folder


def test_several_masks_of_a_class_are_united_and_brought_to_the_size_of_the_image(tmp_path):
    write(tmp_path, masks=(LEFT, TOP[::2, ::2], LEFT.repeat(2, 0).repeat(2, 1)))
    data = OpenImages(tmp_path, "train")
    assert list(data.classes) == ["suit", "street light", "tie"]
    image, masks = data.read(0)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(masks[0], (LEFT | TOP) > 0)
    assert np.array_equal(masks[1], LEFT > 0)
    assert masks.keys() == {0, 1}


def test_only_verified_classes_are_denied(tmp_path, recipe):
    write(tmp_path, negatives={"d0ed": ["tie", "suit"]})  # a suit has a mask all the same
    data = OpenImages(tmp_path, "train")
    denied = set()
    for seed in range(20):
        (answer,) = data.draw(np.random.default_rng(seed), recipe).conversations[0].answers
        denied |= {name for name, present in recipe.format.parse(answer) if not present}
    assert denied == {"tie"}
    (tmp_path / "OpenImageV6/train_negatives.json").unlink()
    data = OpenImages(tmp_path, "train")
    (answer,) = data.draw(np.random.default_rng(0), recipe).conversations[0].answers
    assert {name for name, _ in recipe.format.parse(answer)} == {"suit", "street light"}


@pytest.mark.parametrize("name", ["../outside.png", "d/../../outside.png", "{}/outside.png"])
def test_a_mask_outside_is_left_out(tmp_path, name):
    name = name.format(tmp_path)
    index = INDEX | {"d1ed": {"suit": ["d/d0ed_a.png", name]}}
    folder = write(tmp_path, index=index)
    save(folder / "outside.png", TOP)
    save(folder / "folder_train/d1/d1ed.jpg", seeded_image(1))
    data = OpenImages(tmp_path, "train")
    assert len(data) == 1
    assert f"image d1ed: the mask {name!r} leads out of " in data.dropped[0]


def test_masks_that_cannot_be_used_are_named(tmp_path, recipe):
    folder = write(tmp_path, masks=(LEFT[:, :8], TOP, LEFT))
    with pytest.raises(UnusableItemError, match=r"d0ed_a.png.*mask is \(24, 8\), its image \(24, 32\)"):
        OpenImages(tmp_path, "train").draw(np.random.default_rng(0), recipe)
    (folder / "train-masks/d/d0ed_a.png").write_bytes(b"")
    with pytest.raises(UnusableItemError, match=r"d0ed_a.png.*cannot be decoded"):
        OpenImages(tmp_path, "train").read(0)
    (folder / "train-masks/d/d0ed_a.png").unlink()
    with pytest.raises(UnusableItemError, match=r"d0ed_a.png.*No such file"):
        OpenImages(tmp_path, "train").read(0)
    write(tmp_path, masks=(LEFT * 0, LEFT * 0, LEFT * 0))
    with pytest.raises(UnusableItemError, match=r"d0ed.jpg: no class has a mask"):
        OpenImages(tmp_path, "train").draw(np.random.default_rng(0), recipe)


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"openimage needs .*OpenImageV6"):
        OpenImages(tmp_path, "train")
    folder = write(tmp_path)
    (folder / "train_mask.json").rename(folder / "other.json")
    with pytest.raises(
        FileNotFoundError, match=r"utils.data.tools.openimages_index build-index --dataset_dir"
    ):
        OpenImages(tmp_path, "train")


def test_entries_that_cannot_be_used_are_dropped_and_counted(tmp_path):
    index = {
        **INDEX,
        "ffff": {"suit": ["f/x.png"]},
        "aaaa": {"sock": ["a/x.png"]},
        "bbbb": {},
        "cccc": {"tie": "a.png"},
    }
    write(tmp_path, index)
    data = OpenImages(tmp_path, "train")
    assert len(data) == 1
    assert [text.split(": ")[0].split("/")[-1] for text in data.dropped] == [
        "train_mask.json, image aaaa", "train_mask.json, image bbbb", "train_mask.json, image cccc", "ffff.jpg",
    ]  # fmt: skip
    write(tmp_path, {"categories": ["tie", "Tie"]})
    with pytest.raises(ValueError, match=r"train_mask.json: classes 'tie' and 'Tie' have the same name"):
        OpenImages(tmp_path, "train")
    write(tmp_path, {"d0ed": {}})
    with pytest.raises(ValueError, match=r"no 'categories' in it"):
        OpenImages(tmp_path, "train")


DESCRIPTIONS = "/m/1,Tortoise\n/m/2,Suit\n/m/3,Street light\n/m/4,Tie\n"
MASKS = "MaskPath,ImageID,LabelName,BoxID,Clicks\n"
ROWS = "d0ed_a.png,d0ed,/m/4,a,\nd0ed_b.png,d0ed,/m/2,b,\n0bad_c.png,0bad,/m/2,c,\nd0ed_d.png,d0ed,/m/2,d,\n"
IMAGE_LABELS = (
    "ImageID,Source,LabelName,Confidence\n"
    "d0ed,verification,/m/2,1\n"  # verified present
    "d0ed,verification,/m/3,0\n"  # verified absent, but no mask of it anywhere: no category
    "0bad,verification,/m/4,0\n"
    "0bad,crowdsource-verification,/m/4,0.0\n"  # said twice
    "d0ed,verification,/m/4,0\n"  # contradicts its mask
    "eeee,verification,/m/4,0\n"  # an image without masks
)


def write_csv(root, descriptions=DESCRIPTIONS, masks=MASKS + ROWS, labels=IMAGE_LABELS):
    folder = root / "OpenImageV6"
    folder.mkdir(exist_ok=True)
    (folder / "class-descriptions-boxable.csv").write_text(descriptions)
    (folder / "train-annotations-object-segmentation.csv").write_text(masks)
    (folder / "train-annotations-human-imagelabels-boxable.csv").write_text(labels)
    return folder


def test_the_index_is_built_from_the_official_files(tmp_path, capsys):
    folder = write_csv(tmp_path)
    assert main(["build-index", "--dataset_dir", str(tmp_path)]) == 0
    assert json.loads((folder / "train_mask.json").read_text()) == {
        "categories": ["suit", "tie"],  # in the order of the descriptions
        "d0ed": {"tie": ["d/d0ed_a.png"], "suit": ["d/d0ed_b.png", "d/d0ed_d.png"]},
        "0bad": {"suit": ["0/0bad_c.png"]},
    }
    assert json.loads((folder / "train_negatives.json").read_text()) == {"0bad": ["tie"]}
    assert "2 images, 2 classes, 1 verified absences" in capsys.readouterr().out


def test_a_header_in_the_class_descriptions_is_no_class_and_labels_of_images_are_optional(tmp_path, capsys):
    folder = write_csv(tmp_path, "LabelName,DisplayName\n" + DESCRIPTIONS)
    labels = folder / "train-annotations-human-imagelabels-boxable.csv"
    labels.unlink()
    assert main(["build-index", "--dataset_dir", str(tmp_path)]) == 0
    assert json.loads((folder / "train_mask.json").read_text())["categories"] == ["suit", "tie"]
    assert not (folder / "train_negatives.json").exists()
    assert "so no class is known to be absent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"masks": "MaskPath,ImageID\na,b\n"}, "no column LabelName; it has MaskPath, ImageID"),
        ({"masks": MASKS + "a.png,d0ed,/m/9,a,\n"}, "segmentation.csv, line 2: /m/9 is not in .*descriptions"),
        ({"masks": MASKS + "a.png,,/m/2,a,\n"}, "line 2: a column of MaskPath, ImageID, LabelName is empty"),
        ({"masks": MASKS + ""}, "no masks in it"),
        ({"masks": ""}, "no column MaskPath"),
        ({"descriptions": "/m/2\n"}, "line 1: needs a label and its name"),
        ({"descriptions": DESCRIPTIONS + "/m/5,tie\n", "masks": MASKS + ROWS + "e.png,e,/m/5,e,\n"},
         "classes 'tie' and 'tie' have the same name"),
        ({"labels": "ImageID,LabelName,Confidence\nd0ed,/m/4,no\n"}, "line 2: Confidence 'no' is not a number"),
        ({"masks": MASKS + "a.png,d0ed\ra,/m/2,a,\n"}, "segmentation.csv, line .*: not CSV"),
        ({"masks": MASKS + "a.png," + "d" * 200_000 + ",/m/2,a,\n"}, "segmentation.csv, line .*: not CSV"),
    ],
)  # fmt: skip
def test_csv_files_of_another_form_are_refused_in_one_line(tmp_path, capsys, files, message):
    folder = write_csv(tmp_path, **files)
    assert main(["build-index", "--dataset_dir", str(tmp_path)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "OpenImageV6" in line]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert not (folder / "train_mask.json").exists()


def test_missing_csv_files_are_named(tmp_path, capsys):
    assert main(["build-index", "--dataset_dir", str(tmp_path)]) == 2
    folder = write_csv(tmp_path)
    (folder / "class-descriptions-boxable.csv").unlink()
    assert main(["build-index", "--dataset_dir", str(tmp_path)]) == 2
    assert main(["build-index", "--dataset_dir", str(tmp_path), "--class_descriptions", "no.csv"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "has no OpenImageV6" in first
    assert "class-descriptions-boxable.csv (or --class_descriptions FILE)" in second
    assert "--class_descriptions no.csv is not there" in third


@pytest.mark.parametrize("categories", [None, 3, [1], [None], [["a"]], "text"])
def test_an_index_of_wrong_types_is_one_line(categories, tmp_path):
    root = tmp_path / "OpenImageV6"
    for name in ("train-masks", "folder_train"):
        (root / name).mkdir(parents=True)
    (root / "train_mask.json").write_text(json.dumps({"categories": categories}))
    with pytest.raises((ValueError, OSError), match=r"train_mask\.json"):
        OpenImages(tmp_path, "train")


def test_build_index_is_a_function_of_its_files(tmp_path):
    folder = write_csv(tmp_path)
    files = [folder / "class-descriptions-boxable.csv", folder / "train-annotations-object-segmentation.csv"]
    index, negatives = build_index(*files, show_progress=False)
    assert len(index) == 3
    assert negatives == {}
