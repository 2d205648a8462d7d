"""Files of predictions: read back with other people's code, they are what was predicted."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from utils.common.label_values import IGNORE, NOTHING, UNCLAIMED
from utils.common.paths import file_stems, writable_folder
from utils.data.class_lists import make_id_table
from utils.data.datasets.ade20k import Ade20k
from utils.data.datasets.cityscapes import Cityscapes
from utils.data.datasets.cocostuff import CocoStuff
from utils.data.datasets.mapillary import Mapillary, read_config
from utils.data.datasets.pascal_context import Pc59, Pc459
from utils.data.datasets.pascal_voc import Pas20
from utils.data.semantic import SemanticDataset
from utils.data.types import ReasonSample, ReferringSample, SemanticSample, VqaSample
from utils.evaluation.prediction_files import PredictionWriter, label_values
from utils.evaluation.prompting import MaskAnswer

IMAGE = np.zeros((4, 6, 3), dtype=np.uint8)


def opened(kind: type, **values) -> SemanticDataset:
    """A data set without files."""
    dataset = kind.__new__(kind)
    vars(dataset).update(values)
    return dataset


@pytest.mark.parametrize(
    ("kind", "first", "last", "no_class", "dtype"),
    [
        (Ade20k, 1, 150, 0, np.uint8),
        (Cityscapes, 7, 33, 0, np.uint8),  # labelIds of road and bicycle
        (CocoStuff, 0, 181, 255, np.uint8),
        (Pc59, 1, 59, 0, np.uint8),
        (Pc459, 1, 459, 0, np.uint16),
        (Pas20, 1, 20, 0, np.uint8),
    ],
)
def test_labels_are_written_in_the_values_of_the_official_files(kind, first, last, no_class, dtype):
    dataset = opened(kind)
    values = label_values(dataset, len(kind.classes))
    assert (values[0], values[-2], values[-1]) == (first, last, no_class)
    assert values.dtype == dtype
    # What the data set's own reader makes of the values is the class again.
    np.testing.assert_array_equal(kind.id_table[values[:-1]], np.arange(len(kind.classes)))
    assert kind.id_table[values[-1]] == IGNORE


def test_in_mapillary_0_is_a_class_and_an_unclaimed_pixel_is_the_last_label_that_is_not_evaluated(tmp_path):
    labels = [
        ("animal--bird", True),
        ("void--dynamic", False),
        ("object--car", True),
        ("void--unlabeled", False),
    ]
    described = [{"name": name, "readable": name, "evaluate": evaluate} for name, evaluate in labels]
    (tmp_path / "config.json").write_text(json.dumps({"labels": described}))
    classes, table = read_config(tmp_path / "config.json")
    assert label_values(opened(Mapillary, id_table=table, classes=classes), 2).tolist() == [0, 2, 3]


def test_a_pixel_without_a_class_has_the_value_that_own_data_has_for_it():
    meanings = [(0, 0), (1, IGNORE), (2, 1), (3, NOTHING)]
    own = opened(SemanticDataset_(), id_table=make_id_table(meanings))
    assert label_values(own, 2).tolist() == [0, 2, 3]
    last_of_several = opened(
        SemanticDataset_(), id_table=make_id_table([(0, 0), (1, 1), (7, IGNORE), (9, IGNORE)])
    )
    assert label_values(last_of_several, 2).tolist() == [0, 1, 9]


def SemanticDataset_() -> type:
    return type("Own", (SemanticDataset,), {"find_pairs": lambda self: iter(())})


def test_data_without_label_images_gets_class_indices():
    assert label_values(None, 3).tolist() == [0, 1, 2, 255]
    assert label_values(None, 255).dtype == np.uint8
    assert label_values(None, 256)[-1] == 65535
    assert label_values(None, 256).dtype == np.uint16


@pytest.mark.parametrize("kind", [Ade20k, Pc459])
def test_a_label_image_read_by_the_data_set_is_the_prediction(kind, tmp_path):
    dataset = opened(kind)
    predicted = np.arange(24, dtype=np.int16).reshape(4, 6) % len(kind.classes)
    predicted[1, 2] = UNCLAIMED
    sample = SemanticSample(
        image=IMAGE, label=np.zeros((4, 6), np.uint16), classes=kind.classes, source="/data/val/image_7.jpg"
    )
    writer = PredictionWriter(tmp_path, "stem", dataset)
    assert writer.add(sample, SimpleNamespace(labels=predicted)) == ()
    writer.finish([])
    path = tmp_path / "stem" / "image_7.png"
    values = dataset.class_ids(SemanticDataset.read_values(dataset, path), path)
    np.testing.assert_array_equal(np.where(values == IGNORE, UNCLAIMED, values.astype(int)), predicted)
    ids = (tmp_path / "stem_ids.txt").read_text().splitlines()
    assert ids[0] == f"1\t{kind.classes[0]}"
    assert ids[-1] == "0\t(none of them)"
    assert not (tmp_path / "stem.json").exists()


def test_the_official_cityscapes_evaluation_reads_our_files(tmp_path, monkeypatch):
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    rng = np.random.default_rng(0)
    pairs, dataset = [], opened(Cityscapes)
    writer = PredictionWriter(tmp_path / "ours", "cityscapes", dataset)
    values = label_values(dataset, 19)
    truths, predictions = [], []
    for number in range(2):
        name = f"town_00000{number}_000019"
        truth = rng.integers(0, 19, (4, 6))
        predicted = np.where(rng.random((4, 6)) < 0.6, truth, rng.integers(-1, 19, (4, 6))).astype(np.int16)
        sample = SemanticSample(
            image=IMAGE, label=truth.astype(np.uint16), classes=Cityscapes.classes,
            source=f"/cityscapes/leftImg8bit/val/town/{name}_leftImg8bit.png",
        )  # fmt: skip
        writer.add(sample, SimpleNamespace(labels=predicted))
        Image.fromarray(values[truth]).save(tmp_path / f"{name}_gtFine_labelIds.png")
        pairs.append(str(tmp_path / f"{name}_gtFine_labelIds.png"))
        truths.append(truth)
        predictions.append(predicted)
    monkeypatch.setattr(script.args, "predictionPath", str(tmp_path / "ours"))
    monkeypatch.setattr(script.args, "predictionWalk", None)
    monkeypatch.setattr(script.args, "evalInstLevelScore", False)
    monkeypatch.setattr(script.args, "quiet", True)
    monkeypatch.setattr(script.args, "JSONOutput", False)
    found = [script.getPrediction(script.args, path) for path in pairs]
    result = script.evaluateImgLists(found, pairs, script.args)
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    for class_id, name in enumerate(Cityscapes.classes.official):
        hits = ((truth == class_id) & (predicted == class_id)).sum()
        union = ((truth == class_id) | (predicted == class_id)).sum()
        assert result["classScores"][name] == pytest.approx(hits / union, nan_ok=True)


# ------------------------------------------------------------------------------------------ masks


def masks_of(*columns: slice) -> np.ndarray:
    masks = np.zeros((len(columns), 4, 6), dtype=np.uint8)
    for mask, column in zip(masks, columns, strict=True):
        mask[:, column] = 1
    return masks


def test_masks_are_a_list_that_pycocotools_reads(tmp_path):
    masks = masks_of(slice(0, 2), slice(3, 6), slice(0, 0))
    sample = ReferringSample(
        image=IMAGE,
        expressions=("left", "right ä", "a unicorn"),
        masks=masks,
        no_target=(False, False, True),
        source="/data/train2014/COCO_train2014_000000581857.jpg",
    )
    answers = [MaskAnswer(text="It is [SEG].", mask=mask.astype(bool)) for mask in masks]
    writer = PredictionWriter(tmp_path, "refcoco_unc_val", [])
    writer.finish(writer.add(sample, answers))
    path = tmp_path / "refcoco_unc_val.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["question"] for entry in entries] == ["left", "right ä", "a unicorn"]
    assert [(entry["image_id"], entry["number"]) for entry in entries] == [
        (581857, 0),
        (581857, 1),
        (581857, 2),
    ]
    for entry, mask in zip(entries, masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask)
    official = COCO()
    official.dataset = {"images": [{"id": 581857, "height": 4, "width": 6}], "categories": [{"id": 1}]}
    official.createIndex()
    loaded = official.loadRes(str(path))
    assert [loaded.anns[k]["area"] for k in sorted(loaded.anns)] == [8, 12, 0]


def test_reasoning_and_answers_in_words_are_listed_as_well(tmp_path):
    reason = ReasonSample(
        image=IMAGE, question="what?", is_sentence=True, mask=masks_of(slice(1, 2))[0],
        ignore=np.zeros((4, 6), bool), source="/data/1_a.jpg",
    )  # fmt: skip
    writer = PredictionWriter(tmp_path, "x", [])
    [entry] = writer.add(reason, MaskAnswer(text="Sure, [SEG].", mask=np.ones((4, 6), bool)))
    assert entry["image_id"] == "1_a"
    assert entry["file_name"] == "1_a.jpg"
    assert coco_mask.area(entry["segmentation"]) == 24
    vqa = VqaSample(image=IMAGE, question="how many?", answer="two", source="/data/000000000139.jpg")
    assert writer.add(vqa, "Two.") == (
        {
            "image_id": 139,
            "file_name": "000000000139.jpg",
            "number": 0,
            "question": "how many?",
            "answer": "Two.",
        },
    )


# ------------------------------------------------------------------------------------------- names


def test_each_entry_has_a_file_name_of_its_own():
    entries = [
        "ade20k",
        "refcoco|unc|val",
        "refcoco+|unc|val",
        "own_sem:a/b",
        "own_sem:a_b",
        "OWN_sem:a b",
        "|",
    ]
    stems = file_stems(entries)
    assert stems["refcoco|unc|val"] == "refcoco_unc_val"
    assert stems["refcoco+|unc|val"] == "refcoco+_unc_val"
    assert len({stem.lower() for stem in stems.values()}) == len(entries)
    assert not any("/" in stem or stem.startswith(".") for stem in stems.values())


def test_images_of_own_data_keep_their_folders(tmp_path):
    dataset = SimpleNamespace(name="own_coco:x", dataset_dir=tmp_path / "data")
    writer = PredictionWriter(tmp_path / "out", "own", dataset)
    for source in ("data/a/1.jpg", "data/b/1.jpg", "elsewhere/1.jpg"):
        sample = SemanticSample(
            image=IMAGE, label=np.zeros((4, 6), np.uint16), classes=["x"], source=str(tmp_path / source)
        )
        writer.add(sample, SimpleNamespace(labels=np.zeros((4, 6), np.int16)))
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    assert written == ["own/a/1.png", "own/b/1.png", "own/elsewhere/1.png"]


def test_a_folder_that_cannot_be_written_is_said_with_the_flag(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=rf"--save_predictions .*{folder.name} cannot be written to \(.*\)"
        ):
            writable_folder(folder, "--save_predictions")
    folder = writable_folder(tmp_path / "new" / "one", "--report_dir")
    assert folder.is_dir()
    assert not list(folder.iterdir())
