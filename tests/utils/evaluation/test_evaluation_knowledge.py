"""What an evaluation counts is what somebody has looked for; what it leaves out stands in the report."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from model.text.sequence import reasoning_query
from tests.utils.data import layouts
from tests.utils.evaluation.told_model import FakeProcessor, ListDataset, ToldModel, image_of, mask_logits
from utils.common.label_values import UNCLAIMED
from utils.data.registry import build_val_dataset
from utils.data.types import ReasonSample
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import SemanticPrediction, protocol_for
from utils.reports.report import read_report
from utils.reports.tables import print_report
from utils.reports.write import write_report

HEIGHT, WIDTH = 4, 10


def columns(*pairs: tuple[int, int], rest: int = UNCLAIMED) -> np.ndarray:
    """(4, 10) predicted class ids: `columns((3, 0), (2, 1))` is class 0 in three columns, then class 1 in two."""
    row = [class_id for count, class_id in pairs for _ in range(count)]
    return np.array([row + [rest] * (WIDTH - len(row))] * HEIGHT)


def box(first: int, last: int) -> list[list[int]]:
    """A polygon that covers the columns from `first` up to `last`, that one excluded."""
    return [[first, 0, last, 0, last, HEIGHT, first, HEIGHT]]


def write_coco(folder, images: list[dict], annotations: list[tuple[int, int, list]], names=("a", "b", "c")):
    for number in range(len(images)):
        layouts.save(folder / f"{number}.png", image_of(number, HEIGHT, WIDTH))
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH, **image}
            for number, image in enumerate(images)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "segmentation": drawn}
            for number, (image, category, drawn) in enumerate(annotations)
        ],
    }
    return layouts.save_json(folder / "val.json", content)


def write_semantic(folder, classes: str, labels: list[np.ndarray]):
    for number, label in enumerate(labels):
        layouts.save(folder / f"images/{number}.png", image_of(number, *label.shape))
        layouts.save(folder / f"labels/{number}.png", label.astype(np.uint8))
    (folder / "classes.txt").write_text(classes)
    return folder


def report_of(entry: str, predicted: list[np.ndarray], **settings):
    dataset = build_val_dataset(entry, ".")
    model = ToldModel()
    for index, labels in enumerate(predicted):
        model.label_maps[dataset[index].image.tobytes()] = labels
    return evaluate_datasets(
        model, FakeProcessor(), {entry: dataset}, EvaluationSettings(**settings), show_progress=False
    )


def result_of(entry: str, predicted: list[np.ndarray], **settings):
    return report_of(entry, predicted, **settings).results[0]


def talk(image: str, answer: str, masks=()) -> dict:
    turns = [{"from": "human", "value": "Where is it?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns, "masks": list(masks)}


# ------------------------------------------------------------------------------------------ presence


def test_an_image_that_is_ignored_as_a_whole_is_not_judged(tmp_path):
    sky, ball, ignore, nothing = range(4)
    labels = [
        columns((5, sky), (5, ball)), columns((10, ignore)), columns((5, ball), (5, nothing)),
    ]  # fmt: skip
    data = write_semantic(tmp_path, "sky\nball\nignore\nnothing\n", labels)
    both = columns((5, 0), (5, 1))
    result = result_of(f"own_sem:{data}", [both, both, both])
    # Of the judged pairs, sky and ball of the first and ball of the last are true, its sky is not.
    presence = result.sections["presence"]
    assert presence["num_pairs_all"] == 4
    assert presence["precision_all"] == 3 / 4
    assert presence["recall_all"] == 1.0
    assert (presence["num_pairs"], presence["accuracy"]) == (2, 0.5)
    assert result.per_class["sky"]["presence_precision"] == 0.5
    # Sky: 20 pixels right and 20 claimed of the ball. Ball: 20 right, 20 missed, 20 claimed of nothing.
    assert result.sections["semantic"]["miou"] == pytest.approx((20 / 40 + 20 / 60) / 2)
    assert result.notes == (
        "1 of 3 images have no pixel that is judged",
        "presence leaves out 2 of 6 pairs of an image and a class: nobody has looked",
    )


@pytest.mark.parametrize(("thickness", "num_pairs"), [(21, 2), (3, 4)], ids=["an object", "a border"])
def test_a_class_may_hide_under_ignored_pixels_but_not_under_a_border(tmp_path, thickness, num_pairs):
    label = np.zeros((64, 96))
    label[20 : 20 + thickness, 30:51] = 255
    label[:5] = 2
    data = write_semantic(tmp_path, "nothing\nball\nsky\n", [label, label])
    result = result_of(f"own_sem:{data}", [np.full((64, 96), UNCLAIMED)] * 2)
    assert result.sections["presence"]["num_pairs_all"] == num_pairs


def test_where_labels_are_not_exhaustive_presence_is_a_recall(tmp_path):
    drawn = [(0, 0, box(0, 5)), (1, 1, box(0, 5))]
    path = write_coco(tmp_path, [{}, {}], drawn)
    everything, one = columns((4, 0), (3, 1), (3, 2)), columns((5, 0))
    report = report_of(f"own_coco:{path}|exhaustive=false", [everything, one])
    [result] = report.results
    # Of the two classes drawn, a is found and b is not; what else was said may well be true.
    assert result.sections["presence"] == {"recall_all": 0.5, "num_pairs_all": 2}
    assert all(math.isnan(row["presence_precision"]) for row in result.per_class.values())
    assert all(math.isnan(row["presence_ap"]) for row in result.per_class.values())
    assert result.per_class["a"]["presence_recall"] == 1.0
    # a: 16 of its 20 pixels, and 20 of the 20 of b; of c, which is claimed where nothing is drawn, nothing is known.
    # b: 4 pixels of a are claimed.
    assert result.per_class["a"]["iou"] == pytest.approx(16 / 40)
    assert math.isnan(result.per_class["c"]["iou"])
    assert result.sections["semantic"]["miou"] == pytest.approx((16 / 40 + 0 / 24) / 2)
    note, about_instances = result.notes
    assert about_instances.startswith("AP leaves out ")
    assert "4 of 6 pairs" in note
    assert "only the recall is measured" in note
    write_report(report, tmp_path / "out")
    assert note in (tmp_path / "out" / "report.md").read_text()
    assert read_report(tmp_path / "out").results[0].notes == result.notes
    shown = io.StringIO()
    print_report(report, console=Console(file=shown, width=80))
    assert "presence.recall_all" in " ".join(shown.getvalue().split())
    assert "only the recall is measured" in " ".join(shown.getvalue().split())


def test_the_same_data_labelled_exhaustively_is_judged_in_full(tmp_path):
    path = write_coco(tmp_path, [{}, {}], [(0, 0, box(0, 5)), (1, 1, box(0, 5))])
    everything, one = columns((4, 0), (3, 1), (3, 2)), columns((5, 0))
    result = result_of(f"own_coco:{path}|exhaustive=true", [everything, one])
    presence = result.sections["presence"]
    assert (presence["num_pairs_all"], presence["precision_all"], presence["recall_all"]) == (6, 1 / 4, 0.5)
    assert result.sections["semantic"]["miou"] == pytest.approx((16 / 40 + 0 / 32 + 0 / 12) / 3)
    assert result.notes == ()


def test_verified_negatives_are_judged_and_nothing_else_is(tmp_path):
    images = [{"neg_category_ids": [1]}, {"neg_category_ids": [0]}]
    path = write_coco(tmp_path, images, [(0, 0, box(0, 5)), (1, 1, box(0, 5))])
    predicted = [columns((4, 0), (2, 1), (2, 2), (1, 0)), columns((5, 1))]
    result = result_of(f"own_coco:{path}|exhaustive=false", predicted)
    # Pairs: a and b of each image. Said: both of the first, b of the second.
    presence = result.sections["presence"]
    assert (presence["num_pairs"], presence["num_pairs_all"]) == (4, 4)
    assert (presence["accuracy"], presence["recall"]) == (3 / 4, 1.0)
    assert presence["precision"] == presence["precision_all"] == pytest.approx(2 / 3)
    assert presence["map"] == pytest.approx((1 + 0.5) / 2)
    assert math.isnan(result.per_class["c"]["presence_ap"])
    # b is known not to be in the first image: 8 pixels too many. Column 8 may be a second a, columns 6 and 7 c.
    assert result.per_class["a"]["iou"] == pytest.approx(16 / 20)
    assert result.per_class["b"]["iou"] == pytest.approx(20 / 28)
    assert result.sections["semantic"]["miou"] == pytest.approx((16 / 20 + 20 / 28) / 2)
    assert result.notes == (
        "presence leaves out 2 of 6 pairs of an image and a class: nobody has looked; 1 classes have a recall only",
        "AP leaves out 1 instances found of classes about which their image says nothing",
    )


def test_a_class_that_is_drawn_in_part_is_no_false_positive_where_nothing_is_drawn(tmp_path):
    images = [{"not_exhaustive_category_ids": [1]}]
    path = write_coco(tmp_path, images, [(0, 0, box(0, 5)), (0, 1, box(5, 7))])
    result = result_of(f"own_coco:{path}|exhaustive=true", [columns((5, 0), (4, 1), (1, 0))])
    assert result.per_class["b"]["iou"] == 1.0  # two columns right; two more may be another b
    assert result.per_class["a"]["iou"] == pytest.approx(20 / 24)


def test_own_labels_that_are_not_exhaustive_judge_no_mask_where_nothing_is_labelled(tmp_path):
    a, b, nothing = range(3)
    label = columns((5, a), (5, nothing))
    data = write_semantic(tmp_path, "a\nb\nnothing\n", [label])
    predicted = [columns((4, a), (6, b))]
    result = result_of(f"own_sem:{data}|exhaustive=false", predicted)
    assert result.sections["presence"] == {"recall_all": 1.0, "num_pairs_all": 1}
    assert result.sections["semantic"]["miou"] == pytest.approx((16 / 20 + 0 / 4) / 2)
    assert result.per_class["b"]["predicted_pixels"] == 4


def test_a_threshold_is_not_sought_where_no_class_is_known_to_be_absent(tmp_path):
    path = write_coco(tmp_path, [{}], [(0, 0, box(0, 5))])
    with pytest.raises(
        ValueError, match=r"calibrate needs classes that are known to be absent.*exhaustive=true"
    ):
        report_of(f"own_coco:{path}", [], calibrate=True)


def test_a_target_that_is_ignored_is_not_judged():
    model, samples = ToldModel(), []
    query = str(reasoning_query("what?", True)[0])
    target = columns((5, 1), rest=0) == 1
    for number, seen in enumerate((0, 5)):  # columns of the target that are not ignored
        image, ignore = image_of(number, HEIGHT, WIDTH), target & (np.arange(WIDTH) >= seen)
        model.answers[image.tobytes(), query] = ("It is [SEG].", mask_logits(target)[None])
        mask = (target & ~ignore).astype(np.uint8)
        about = {"question": "what?", "is_sentence": True, "source": str(number)}
        samples.append(ReasonSample(image=image, mask=mask, ignore=ignore, **about))
    report = evaluate_datasets(
        model, FakeProcessor(), {"r": ListDataset(samples)}, EvaluationSettings(), show_progress=False
    )
    [result] = report.results
    assert result.sections["reasoning"]["num_questions"] == 1
    assert result.notes == ("1 of 2 targets are ignored, and not judged",)


# ---------------------------------------------------------------------------------------- no target


def test_own_conversations_with_neg_get_both_accuracies(tmp_path):
    lines = [talk("0.png", "It is [SEG].", [box(0, 5)]), talk("1.png", "It is not there [NEG].")]
    lines += [talk("2.png", "[NEG]")]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = ToldModel()
    left, nothing = mask_logits(columns((5, 1), rest=0) == 1)[None], mask_logits(np.zeros((0, 4, 10)))
    for number, masks in enumerate((left, nothing, left)):
        image = image_of(number, HEIGHT, WIDTH)
        layouts.save(tmp_path / f"{number}.png", image)
        model.answers[image.tobytes(), "Where is it?"] = ("", masks)
    entry = f"own_jsonl:{tmp_path}"
    report = evaluate_datasets(
        model, FakeProcessor(), {entry: build_val_dataset(entry, ".")}, EvaluationSettings(), show_progress=False
    )  # fmt: skip
    sections = report.results[0].sections
    assert sections["no_target"]["accuracy"] == 0.5  # N-acc
    assert sections["generalized"]["t_acc"] == 1.0
    assert sections["generalized"]["giou"] == pytest.approx(2 / 3)
    assert "referring" not in sections


@pytest.mark.parametrize(("target", "has_no_target"), [(11, False), ([-1], True)])
def test_any_referring_data_says_whether_an_expression_has_no_target(tmp_path, target, has_no_target):
    refs = [layouts.reference(0, 11, 1, "val", "a box"), layouts.reference(1, target, 1, "val", "a ball")]
    segmentations = {11: [layouts.box_polygon(1, 2, 8, 10)]}
    layouts.write_refer(tmp_path, "refcoco", refs, segmentations, [1], refs_file="refs(unc).p")
    assert build_val_dataset("refcoco|unc|val", tmp_path).has_no_target is has_no_target


def test_a_class_that_nobody_looked_for_is_not_said_to_be_invented(tmp_path):
    path = write_coco(tmp_path, [{}, {"neg_category_ids": [1]}], [(0, 0, box(0, 5)), (1, 0, box(0, 5))])
    dataset = build_val_dataset(f"own_coco:{path}|exhaustive=false", ".")
    protocol = protocol_for(dataset[0], EvaluationSettings(), has_no_target=False)
    labels = columns((4, 0), (1, 1)).astype(np.int16)
    prediction = SemanticPrediction(labels=labels, asked=np.arange(3), answered_present=np.arange(2))
    notes = [
        {entry.name: entry.note for entry in protocol.row(sample, prediction).legend} for sample in dataset
    ]
    assert notes == [{"a": "0.80", "b": "not labelled"}, {"a": "0.80", "b": "invented"}]
