"""File names in annotation files that come from other machines and other tools."""

import unicodedata

import pytest

from tests.utils.data.layouts import box_polygon, dialogue, save, save_json, seeded_image
from utils.data.image_names import ImageFiles
from utils.data.registry import parse_entry


def folder_with(root, *names):
    for name in names:
        save(root / name, seeded_image(1))
    return root


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        (".\\images\\a.jpg", "images/a.jpg"),
        ("C:\\Users\\me\\project\\images\\a.jpg", "images/a.jpg"),
        ("\\\\server\\share\\images\\a.jpg", "images/a.jpg"),
        ("/home/me/project/images/a.jpg", "images/a.jpg"),
        ("../../label-studio/data/media/upload/1/0a1b2c3d-a.jpg", "a.jpg"),
        ("/data/upload/1/0a1b2c3d-my%20photo.jpg", "my photo.jpg"),
        ("/data/local-files/?d=images/a.jpg", "images/a.jpg"),
        ("/data/local-files/?d=images%5Ca.jpg", "images/a.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
        ("file:///home/me/my%20photo.jpg", "my photo.jpg"),
        ("https://example.org/bucket/my%20photo.jpg?token=1", "my photo.jpg"),
        ("http://images.example/train2017/000000000001.jpg", "train2017/000000000001.jpg"),
        ("'my photo.jpg'", "my photo.jpg"),
        ("0a1b2c3d_my photo.jpg", "my photo.jpg"),
        ("12345678-1234-1234-1234-123456789abc-my photo.jpg", "my photo.jpg"),
        ("upload.jpg", "0A1B2C3D-upload.jpg"),
        ("MY PHOTO.JPG", "my photo.jpg"),
        (unicodedata.normalize("NFD", "gr\u00fcn.jpg"), unicodedata.normalize("NFC", "gr\u00fcn.jpg")),
        ("100%.jpg", "100%.jpg"),
        ("a[1].jpg", "a[1].jpg"),
        ("photo", "photo.JPG"),  # without the suffix
        ("images/photo.v2", "images/photo.v2.png"),
        ("my photo.jpg", "my%20photo.jpg"),
        ("a.jpg", "a.jpg"),
        ("cafebabe-exact.jpg", "cafebabe-exact.jpg"),
    ],
)
def test_a_name_means_the_file_that_a_reader_would_take(tmp_path, written, file):
    folder_with(tmp_path, file, "other.jpg")
    files = ImageFiles(tmp_path, [written])
    assert written in files
    assert files.path(written) == tmp_path / file
    assert files.respelled == ({} if written == file else {written: file})


@pytest.mark.parametrize("written", ["", "..", "/", "\x00", "b.jpg", "x" * 5000, "%00", "?d=", "http://[::1"])
def test_names_that_mean_no_file_are_none(tmp_path, written):
    assert written not in ImageFiles(folder_with(tmp_path, "images/a.png", "c.jpg"), [written])


def test_a_name_without_suffix_means_an_image_and_only_if_there_is_one(tmp_path):
    folder_with(tmp_path, "a.jpg", "b.png", "b.jpg")
    (tmp_path / "c.json").write_text("{}")
    files = ImageFiles(tmp_path, ["a", "b", "c", "b.webp"])
    assert files.respelled == {"a": "a.jpg"}


def test_two_prefixes_are_two_files(tmp_path):
    assert "20240102-a.jpg" not in ImageFiles(folder_with(tmp_path, "20240101-a.jpg"), ["20240102-a.jpg"])


def test_two_names_never_mean_one_file(tmp_path):
    files = ImageFiles(
        folder_with(tmp_path, "1.jpg", "2.jpg"), ["train\\1.jpg", "val\\1.jpg", "2.jpg", "x/2.jpg"]
    )
    assert [name for name in ("train\\1.jpg", "val\\1.jpg", "2.jpg", "x/2.jpg") if name in files] == ["2.jpg"]
    assert files.why_not("val\\1.jpg").startswith("could be 1.jpg, but so could another name")
    assert files.why_not("gone.jpg") == "is not there"


def test_a_name_as_written_goes_before_any_other_spelling(tmp_path):
    files = ImageFiles(folder_with(tmp_path, "a%20b.jpg", "a b.jpg"), ["a%20b.jpg", "a b.jpg"])
    assert files.path("a%20b.jpg") == tmp_path / "a%20b.jpg"
    assert not files.respelled


def coco(*names):
    return {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "segmentation": [box_polygon(2, 3, 10, 8)]}
            for k in range(len(names))
        ],
        "categories": [{"id": 1, "name": "boat"}],
    }


def opened(path):
    kind = "own_coco" if path.suffix == ".json" else "own_jsonl"
    return parse_entry(f"{kind}:{path}", "--dataset").open("nowhere", training=True)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("labels.json", "images"),
        ("annotations/labels.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/labels.json", ""),
    ],
)
def test_the_folder_that_holds_most_images_is_taken(tmp_path, annotations, images):
    names = [f"{k}.jpg" for k in range(6)]
    folder_with(tmp_path / images, *names)
    path = save_json(tmp_path / annotations, coco(*names))
    save(path.parent / "0.jpg", seeded_image(9))  # a copy of one beside the file
    data = opened(path)
    assert {item.path for item in data.items} == {tmp_path / images / name for name in names}
    assert not data.dropped


def test_a_draw_between_folders_goes_to_the_one_beside_the_file(tmp_path):
    folder_with(tmp_path, "0.jpg", "images/0.jpg")
    assert opened(save_json(tmp_path / "labels.json", coco("0.jpg"))).items[0].path == tmp_path / "0.jpg"


def test_names_that_were_respelled_are_noted_and_missing_images_counted(tmp_path, caplog):
    folder_with(tmp_path, "images/a.jpg", "images/b.jpg")
    data = opened(
        save_json(tmp_path / "result.json", coco("images\\a.jpg", "images\\b.jpg", "images\\c.jpg"))
    )
    assert [item.path.name for item in data.items] == ["a.jpg", "b.jpg"]
    assert data.coverage.left_out == {"missing": 1}
    assert len(data.notes) == 1
    assert r"'images\\a.jpg' as 'images/a.jpg'" in caplog.text


def test_lines_with_questions_name_images_and_masks_alike(tmp_path, recipe):
    folder_with(tmp_path, "images/a b.jpg")
    mask = seeded_image(0)[..., 0] * 0
    mask[3:9, 4:20] = 255
    save(tmp_path / "masks/a.png", mask)
    line = dialogue("C:\\data\\a%20b.jpg", "Where?", "[SEG].") | {"masks": ["masks\\a.png"]}
    path = save_json(tmp_path / "talk.jsonl", line)
    data = opened(path)
    sample = data.sample_of(0, None, recipe)
    assert sample.source == str(tmp_path / "images/a b.jpg")
    assert (sample.masks[0] == (mask > 0)).all()
    assert len(data.notes) == 1
