"""The protocols with a model that answers as the test tells it to; the numbers against slow references."""

from __future__ import annotations

import json
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.outputs import ChatAnswer, Segmentation
from model.sequence import SequenceFormat, reasoning_query, referring_query
from utils import evaluate as evaluation
from utils.asking import EvaluationSettings
from utils.data.types import IGNORE, ReasonSample, ReferringSample, SemanticSample, VqaSample
from utils.evaluate import Outputs, evaluate, evaluate_datasets, spread
from utils.metrics import UNCLAIMED
from utils.report import Report

CLASSES = ("sky", "grass", "sea", "sand", "person", "dog", "ball", "flag")


def image_of(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class ToldModel(torch.nn.Module):
    """Answers from a table; keeps what it was asked."""

    can_pack_rows = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.label_maps: dict[bytes, np.ndarray] = {}  # image -> predicted label map
        self.answers: dict[tuple[bytes, str], tuple[str, torch.Tensor]] = {}  # image, query -> text, masks
        self.calls: list[dict] = []

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def segment_batch(self, images, classes, *, processor, classes_per_query, **_):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append({"images": len(images), "classes": classes, "classes_per_query": classes_per_query})
        results = []
        for image, names in zip(images, classes, strict=True):
            labels = self.label_maps[image.tobytes()]
            present = [bool((labels == class_id).any()) for class_id in range(len(names))]
            masks = [np.where(labels == class_id, 2.0, -2.0) for class_id in np.flatnonzero(present)]
            stacked = np.stack(masks) if masks else np.zeros((0, *labels.shape))
            results.append(
                Segmentation(
                    names=tuple(names),
                    present=present,
                    probabilities=[float(p) for p in present],
                    masks=torch.from_numpy(stacked).float(),
                    num_passes=2,
                )
            )
        return results

    def generate_batch(self, images, conversations, *, image_of_row, processor, max_new_tokens):
        self.calls.append({"images": len(images), "rows": len(conversations)})
        results = []
        for row, conversation in zip(image_of_row, conversations, strict=True):
            text, masks = self.answers[images[row].tobytes(), str(conversation.turns[-1])]
            results.append(ChatAnswer(text=text, masks=masks, token_ids=[]))
        return results

    def forward(self, *, images, conversations, image_of_row):
        """Teacher-forced: the masks of the answers that were read."""
        masks = [[] for _ in images]
        for row, conversation in zip(image_of_row, conversations, strict=True):
            assert conversation.num_seg == 1
            masks[row].append(self.answers[images[row].tobytes(), str(conversation.turns[0])][1][0])
        return SimpleNamespace(masks=[torch.stack(of_image) for of_image in masks])


@dataclass
class FakeProcessor:
    format: SequenceFormat = field(default_factory=lambda: SequenceFormat.named("paper"))

    def collate(self, images, conversations, image_of_row, pack_rows):
        return {"images": images, "conversations": conversations, "image_of_row": image_of_row}


@pytest.fixture
def datasets(monkeypatch):
    """Entry -> list of samples, in place of files."""
    known: dict[str, list] = {}
    monkeypatch.setattr(evaluation, "open_datasets", lambda entries, folder: {e: known[e] for e in entries})
    return known


def run(model, entry, **settings):
    settings = EvaluationSettings(**settings)
    report = evaluate(model, FakeProcessor(), [entry], "unused", settings, show_progress=False)
    return report.results[0]


def numbers_of(result) -> str:
    """Everything that goes into report.json, to the last bit, but for the time it took."""
    content = Report(model="", protocol={}, results=(result,)).to_dict()
    del content["timings"]
    return json.dumps(content, sort_keys=True)


def mask_logits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 1.0, -1.0)).float()


# ----------------------------------------------------------------------------------------- semantic


def semantic_world(model: ToldModel, num_images: int, *, seed: int = 0) -> list[SemanticSample]:
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(num_images):
        image = image_of(1000 * seed + index)
        held = rng.choice(len(CLASSES) - 1, size=3, replace=False)  # the last class is nowhere
        label = rng.choice([*held, IGNORE], size=image.shape[:2]).astype(np.uint16)
        predicted = np.where(
            rng.random(label.shape) < 0.7, label.astype(np.int32), rng.choice([*held, UNCLAIMED], label.shape)
        )
        predicted = np.where(predicted == IGNORE, rng.integers(0, 7), predicted)
        model.label_maps[image.tobytes()] = predicted
        samples.append(SemanticSample(image=image, label=label, classes=CLASSES, source=str(index)))
    return samples


def test_semantic_numbers_equal_a_slow_reference_over_all_pixels(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 7)
    result = run(model, "ade20k", val_batch_size=3)

    truth = np.concatenate([sample.label.ravel() for sample in samples])
    predicted = np.concatenate([model.label_maps[sample.image.tobytes()].ravel() for sample in samples])
    judged = truth != IGNORE
    truth, predicted = truth[judged], predicted[judged]
    expected = {}
    for class_id, name in enumerate(CLASSES):
        union = ((truth == class_id) | (predicted == class_id)).sum()
        if union:
            expected[name] = ((truth == class_id) & (predicted == class_id)).sum() / union
    assert {name: row["iou"] for name, row in result.per_class.items() if name in expected} == pytest.approx(
        expected
    )
    assert all(math.isnan(row["iou"]) for name, row in result.per_class.items() if name not in expected)
    assert result.confusion[:-1].sum() == len(truth)
    assert result.sections["semantic"]["miou"] == pytest.approx(np.mean(list(expected.values())))
    assert result.sections["semantic"]["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    assert result.num_samples == 7
    assert len(result.sheet) == 7


def test_all_class_names_of_the_data_set_are_asked_in_its_order(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 2)
    run(model, "ade20k", classes_per_query=3, val_batch_size=2)
    assert model.calls == [{"images": 2, "classes": [list(CLASSES)] * 2, "classes_per_query": 3}]


def test_numbers_do_not_depend_on_the_batch_size_or_the_loader(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 5)
    one, three = run(model, "ade20k"), run(model, "ade20k", val_batch_size=3)
    assert numbers_of(one) == numbers_of(three)


def test_presence_asks_as_many_absent_classes_of_the_split_as_present_ones(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 6)
    for sample in samples:  # always "everything is here", among them the class that no image holds
        claims = np.arange(sample.label.size).reshape(sample.label.shape) % len(CLASSES)
        model.label_maps[sample.image.tobytes()] = claims
    presence = run(model, "ade20k").sections["presence"]
    assert presence["num_pairs"] == 6 * (3 + 3)
    assert presence["accuracy"] == pytest.approx(0.5)
    assert presence["recall"] == 1.0
    assert presence["num_pairs_all"] == 6 * len(CLASSES)
    assert presence["precision_all"] == pytest.approx(3 / 8)


def test_a_perfect_model_is_perfect(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 4)
    for sample in samples:
        model.label_maps[sample.image.tobytes()] = np.where(sample.label == IGNORE, UNCLAIMED, sample.label)
    result = run(model, "ade20k")
    assert result.sections["semantic"]["miou"] == 1.0
    assert result.sections["presence"]["accuracy"] == 1.0


def test_a_model_that_finds_nothing_scores_zero_not_nan(datasets):
    model = ToldModel()
    samples = datasets["ade20k"] = semantic_world(model, 3)
    for sample in samples:
        model.label_maps[sample.image.tobytes()] = np.full(sample.label.shape, UNCLAIMED)
    result = run(model, "ade20k")
    assert result.sections["semantic"]["miou"] == 0.0
    assert result.sections["presence"]["accuracy"] == pytest.approx(0.5)
    assert math.isnan(result.sections["presence"]["precision"])


# ------------------------------------------------------------------------------------ referring etc.


def referring_world(model: ToldModel) -> list[ReferringSample]:
    """Two images: a hit in two masks and a miss; a half hit and a mask drawn for nothing."""
    image, other = image_of(1, 4, 10), image_of(2, 4, 10)
    left, right = np.zeros((4, 10), dtype=np.uint8), np.zeros((4, 10), dtype=np.uint8)
    left[:, :5], right[:, 5:] = 1, 1
    both = left | right

    def tell(picture, expression, text, masks):
        stacked = torch.stack([mask_logits(m) for m in masks]) if masks else torch.zeros(0, 4, 10)
        model.answers[picture.tobytes(), str(referring_query(expression)[0])] = (text, stacked)

    tell(image, "both balls", "They are [SEG] and [SEG].", [left, right])
    tell(image, "the left ball", "It is not in this image [NEG].", [])
    tell(other, "the right ball", "It is [SEG].", [both])
    tell(other, "a unicorn", "It is [SEG].", [left])
    return [
        ReferringSample(
            image=image,
            expressions=("both balls", "the left ball"),
            masks=np.stack([both, left]),
            no_target=(False, False),
            source="a",
        ),
        ReferringSample(
            image=other,
            expressions=("the right ball", "a unicorn"),
            masks=np.stack([right, np.zeros_like(right)]),
            no_target=(False, True),
            source="b",
        ),
    ]


def test_referring_unites_the_masks_of_an_answer_and_counts_every_expression(datasets):
    model = ToldModel()
    datasets["refcoco|unc|val"] = referring_world(model)
    result = run(model, "refcoco|unc|val", val_batch_size=2)
    referring = result.sections["referring"]
    assert referring["num_expressions"] == 4
    assert referring["giou"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert referring["ciou"] == pytest.approx((40 + 0 + 20 + 0) / (40 + 20 + 40 + 20))
    for row, sample in zip(result.sheet, datasets["refcoco|unc|val"], strict=True):
        assert row.legend[1].name in sample.expressions


def test_an_image_is_encoded_once_for_all_its_expressions(datasets):
    model = ToldModel()
    datasets["refcoco|unc|val"] = referring_world(model)
    run(model, "refcoco|unc|val", val_batch_size=2)
    assert model.calls == [{"images": 2, "rows": 4}]


def test_many_expressions_of_an_image_are_asked_in_several_passes_and_answered_in_order(datasets):
    model = ToldModel()
    image = image_of(3, 4, 10)
    masks = (np.arange(40).reshape(1, 4, 10) == np.arange(20).reshape(20, 1, 1)).astype(np.uint8)
    expressions = tuple(f"pixel {number}" for number in range(20))
    for expression, mask in zip(expressions, masks, strict=True):
        query = str(referring_query(expression)[0])
        model.answers[image.tobytes(), query] = ("It is [SEG].", mask_logits(mask)[None])
    datasets["refcoco|unc|val"] = [
        ReferringSample(
            image=image, expressions=expressions, masks=masks, no_target=(False,) * 20, source="many"
        )
    ]
    result = run(model, "refcoco|unc|val")
    assert result.sections["referring"]["ciou"] == 1.0
    assert [call["rows"] for call in model.calls] == [8, 8, 4]


def test_grefcoco_counts_no_target_by_both_rules(datasets):
    model = ToldModel()
    datasets["grefcoco|unc|val"] = referring_world(model)
    sections = run(model, "grefcoco|unc|val").sections
    assert sections["no_target"]["accuracy"] == 0.0  # 20 pixels were drawn for the unicorn
    assert sections["no_target"]["accuracy_50px"] == 1.0  # which is nothing by the other rule
    assert sections["generalized"]["t_acc"] == pytest.approx(2 / 3)
    assert sections["generalized"]["giou"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert sections["generalized"]["ciou"] == pytest.approx(60 / (40 + 20 + 40 + 20))


def test_teacher_forced_reads_the_answer_and_judges_only_its_mask(datasets):
    model = ToldModel()
    samples = datasets["refcoco|unc|val"] = referring_world(model)
    key = samples[0].image.tobytes(), str(referring_query("the left ball")[0])
    model.answers[key] = ("unused", mask_logits(samples[0].masks[1])[None])
    report = evaluate(
        model,
        FakeProcessor(),
        ["refcoco|unc|val"],
        "unused",
        EvaluationSettings(teacher_forced=True, val_batch_size=2),
        show_progress=False,
    )
    # Only the first mask of an answer is asked for now: half of "both balls".
    assert report.results[0].sections["referring"]["giou"] == pytest.approx((1 / 2 + 1 + 1 / 2 + 0) / 4)
    assert report.protocol["answers"] == "teacher_forced"
    assert model.calls == []


def test_reasoning_leaves_ignored_pixels_out(datasets):
    model = ToldModel()
    image = image_of(5, 4, 10)
    mask, ignore = np.zeros((4, 10), dtype=np.uint8), np.zeros((4, 10), dtype=bool)
    mask[:, :4], ignore[:, 6:] = 1, True
    predicted = np.zeros((4, 10))
    predicted[:, 2:] = 1
    query = str(reasoning_query("what could a child kick?", True)[0])
    model.answers[image.tobytes(), query] = ("Sure, [SEG].", mask_logits(predicted)[None])
    datasets["ReasonSeg|val"] = [
        ReasonSample(
            image=image,
            question="what could a child kick?",
            is_sentence=True,
            mask=mask,
            ignore=ignore,
            source="r",
        )
    ]
    reasoning = run(model, "ReasonSeg|val").sections["reasoning"]
    assert reasoning["giou"] == pytest.approx(8 / 24)  # 2 of 6 columns


def test_vqa_compares_generated_text(datasets):
    model = ToldModel()
    samples = []
    for index, (said, expected) in enumerate(
        [("Two.", "two"), ("A red ball", "the red ball"), ("no", "yes")]
    ):
        image = image_of(index)
        model.answers[image.tobytes(), "what?"] = (said, torch.zeros(0, 24, 32))
        samples.append(VqaSample(image=image, question="what?", answer=expected, source=str(index)))
    datasets["llava_instruct_150k"] = samples
    vqa = run(model, "llava_instruct_150k").sections["vqa"]
    assert vqa["exact_match"] == pytest.approx(2 / 3)
    assert vqa["rouge_l"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # "red ball" of three words each


# -------------------------------------------------------------------------------------- the loop


class Threads:
    """Threads in place of processes: each has a rank, and what one gathers the others give."""

    def __init__(self, monkeypatch, num: int) -> None:
        self.num = num
        self.local = threading.local()
        self.barrier = threading.Barrier(num, timeout=60)
        self.given: list = [None] * num
        monkeypatch.setattr(evaluation, "rank_and_world_size", lambda: (getattr(self.local, "rank", 0), num))
        monkeypatch.setattr(evaluation.dist, "all_gather_object", self.all_gather_object)
        monkeypatch.setattr(evaluation.dist, "barrier", self.barrier.wait)

    def all_gather_object(self, shares, mine):
        self.given[self.local.rank] = pickle.dumps(mine)  # as between processes
        self.barrier.wait()
        shares[:] = [pickle.loads(given) for given in self.given]
        self.barrier.wait()

    def run(self, function) -> list:
        """function(rank) on every thread; what each returned."""

        def one(rank):
            self.local.rank = rank
            return function(rank)

        with ThreadPoolExecutor(self.num) as pool:
            return list(pool.map(one, range(self.num)))


@pytest.mark.parametrize(("batch_size", "shares"), [(1, [4, 3]), (2, [4, 3]), (4, [4, 3]), (7, [7, 0])])
def test_processes_count_an_odd_number_of_samples_once_and_report_the_same(
    datasets, monkeypatch, batch_size, shares
):
    models = [ToldModel(), ToldModel(), ToldModel()]
    for model in models:
        datasets["ade20k"] = semantic_world(model, 7)
    settings = {"num_pictures": 3, "val_batch_size": batch_size}
    alone = run(models[2], "ade20k", **settings)
    batches = [call["images"] for call in models[2].calls]
    both = Threads(monkeypatch, 2).run(lambda rank: run(models[rank], "ade20k", **settings))
    assert [sum(call["images"] for call in model.calls) for model in models[:2]] == shares
    # The batches are those of one process, so what a batch's other images do to an image is the same.
    assert sorted(call["images"] for model in models[:2] for call in model.calls) == sorted(batches)
    for together in both:
        assert numbers_of(together) == numbers_of(alone)
        assert together.num_samples == 7
        for ours, theirs in zip(together.sheet, alone.sheet, strict=True):
            np.testing.assert_array_equal(ours.prediction, theirs.prediction)
            np.testing.assert_array_equal(ours.image, theirs.image)


# ------------------------------------------------------------------------------------------ resume


class Killed(Exception):
    pass


class DyingModel(ToldModel):
    """Is killed before its prediction number `lives` + 1."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def segment_batch(self, images, classes, **options):
        if len(self.calls) >= self.lives:
            raise Killed
        return super().segment_batch(images, classes, **options)


def report_of(model, datasets, folder, *, resume=False, processor=None, predictions=None, **settings):
    outputs = Outputs(report_dir=folder, resume=resume, num_shown=2, predictions_dir=predictions)
    return evaluate_datasets(
        model,
        processor or FakeProcessor(),
        datasets,
        EvaluationSettings(num_pictures=2, **settings),
        outputs=outputs,
        show_progress=False,
    )


def files_of(report, folder) -> dict[str, bytes]:
    """Every file of the report as it would be written, but for the time it took."""
    results = tuple(replace(result, seconds=0.0) for result in report.results)
    replace(report, results=results).save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def two_worlds(model) -> dict[str, list]:
    """Two data sets that the model knows, semantic and referring."""
    return {"ade20k": semantic_world(model, 9), "refcoco|unc|val": referring_world(model)}


@pytest.mark.parametrize(("lives", "batch_size", "left"), [(0, 1, 9), (4, 1, 5), (2, 4, 1), (9, 1, 0)])
def test_a_killed_evaluation_goes_on_and_its_report_is_the_same_to_the_last_bit(
    tmp_path, lives, batch_size, left
):
    whole = ToldModel()
    expected = files_of(
        report_of(whole, two_worlds(whole), tmp_path / "a", val_batch_size=batch_size), tmp_path / "x"
    )
    dying = DyingModel(lives)
    with pytest.raises(Killed):
        report_of(dying, two_worlds(dying) | {"cocostuff": semantic_world(dying, 1, seed=5)}, tmp_path / "b",
                  val_batch_size=batch_size)  # fmt: skip
    again = ToldModel()
    report = report_of(again, two_worlds(again), tmp_path / "b", resume=True, val_batch_size=batch_size)
    assert sum(call["images"] for call in again.calls if "classes" in call) == left
    assert files_of(report, tmp_path / "y") == expected
    assert "samples.html" in expected
    assert "confusion_ade20k.png" in expected


def test_a_line_that_the_kill_cut_off_is_predicted_again(tmp_path):
    model = ToldModel()
    worlds = {"ade20k": semantic_world(model, 5)}
    expected = numbers_of(report_of(model, worlds, tmp_path).results[0])
    [shard] = (tmp_path / "finished").iterdir()
    content = shard.read_bytes()
    for cut in (len(content) - 1, len(content) - 40, content.index(b"\n") // 2, 0):
        shard.write_bytes(content[:cut])
        model.calls.clear()
        resumed = report_of(model, worlds, tmp_path, resume=True)
        assert numbers_of(resumed.results[0]) == expected
        assert len(model.calls) == (5 if cut < content.index(b"\n") else 1)
        assert len(shard.read_bytes()) == len(content)


def test_another_number_of_processes_goes_on_as_well(tmp_path, monkeypatch):
    whole = ToldModel()
    expected = numbers_of(report_of(whole, {"ade20k": semantic_world(whole, 9)}, tmp_path / "a").results[0])
    dying = DyingModel(4)
    with pytest.raises(Killed):
        report_of(dying, {"ade20k": semantic_world(dying, 9)}, tmp_path / "b")
    models = [ToldModel(), ToldModel()]
    worlds = [{"ade20k": semantic_world(model, 9)} for model in models]
    both = Threads(monkeypatch, 2).run(
        lambda rank: report_of(models[rank], worlds[rank], tmp_path / "b", resume=True)
    )
    assert [len(model.calls) for model in models] == [3, 2]
    assert [numbers_of(report.results[0]) for report in both] == [expected, expected]
    assert sorted(path.name for path in (tmp_path / "b" / "finished").iterdir()) == [
        "ade20k.0.jsonl",
        "ade20k.1.jsonl",
    ]


def test_without_resume_an_evaluation_starts_anew_and_says_what_it_leaves(tmp_path, caplog):
    dying = DyingModel(2)
    with pytest.raises(Killed):
        report_of(dying, {"ade20k": semantic_world(dying, 3)}, tmp_path)
    model = ToldModel()
    report = report_of(model, {"ade20k": semantic_world(model, 3)}, tmp_path)
    assert len(model.calls) == 3
    assert "with --resume it would go on" in caplog.text
    report.save(tmp_path)
    caplog.clear()
    report_of(model, {"ade20k": semantic_world(model, 3)}, tmp_path)
    assert not caplog.text  # a finished one is not worth a word


def test_samples_of_another_model_protocol_or_data_set_are_refused_before_anything_is_predicted(tmp_path):
    model = ToldModel()
    worlds = two_worlds(model)
    report_of(model, worlds, tmp_path, seed=3)
    model.calls.clear()
    other = ToldModel()
    torch.nn.init.ones_(other.weight)
    refused = [
        (other, worlds, {"seed": 3}, "another model"),
        (model, worlds, {"seed": 4}, "seed was 3, is 4"),
        (model, worlds, {"seed": 3, "presence_threshold": 0.5}, "presence_threshold was None, is 0.5"),
        (model, worlds, {"seed": 3, "teacher_forced": True}, "answers was 'generated', is 'teacher_forced'"),
        (model, worlds, {"seed": 3, "predictions": tmp_path / "p"}, "predictions was ''"),
        (model, {"ade20k": worlds["ade20k"][:4]}, {"seed": 3}, "num_items was 9, is 4"),
        # The order matters: the last is refused before the first is predicted.
        ({}, {"pas20": semantic_world(model, 2), "ade20k": worlds["ade20k"][:4]}, {"seed": 3}, "num_items"),
    ]
    for asked, sets, settings, message in refused:
        with pytest.raises(ValueError, match=message) as problem:
            report_of(asked or model, sets, tmp_path, resume=True, **settings)
        assert "leave out --resume" in str(problem.value)
    assert model.calls == other.calls == []


def test_files_of_another_version_or_damaged_ones_are_refused(tmp_path):
    model = ToldModel()
    worlds = {"ade20k": semantic_world(model, 3)}
    report_of(model, worlds, tmp_path)
    [shard] = (tmp_path / "finished").iterdir()
    lines = shard.read_text().splitlines(keepends=True)
    spoiled = {
        "version 99": [lines[0].replace('"state_version": 1', '"state_version": 99'), *lines[1:]],
        r"version None": ["[]\n", *lines[1:]],
        r"line 3": [*lines[:2], lines[2][:50] + "\n", *lines[3:]],
        r"line 2.*SheetRow": [lines[0], lines[1].replace("SemanticRecord", "SheetRow"), *lines[2:]],
        r"line 4.*int32": [*lines[:3], lines[3].replace("<i4", "|O")],
    }
    for message, content in spoiled.items():
        shard.write_text("".join(content))
        with pytest.raises(ValueError, match=message.replace("int32", "object")):
            report_of(model, worlds, tmp_path, resume=True)
    shard.write_text("".join(lines))
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match=r"report\.json: schema_version is 1, this program reads 2"):
        report_of(model, worlds, tmp_path, resume=True)


def test_the_best_and_the_worst_samples_are_shown_in_order(datasets):
    model = ToldModel()
    samples = semantic_world(model, 6)
    shares = [0.5, 0.1, 0.9, 0.3, 1.0, 0.0]  # of the pixels that are right
    for share, sample in zip(shares, samples, strict=True):
        right = np.arange(sample.label.size).reshape(sample.label.shape) < share * sample.label.size
        model.label_maps[sample.image.tobytes()] = np.where(
            right & (sample.label != IGNORE), sample.label, UNCLAIMED
        )
    report = evaluate_datasets(
        model, FakeProcessor(), {"ade20k": samples}, EvaluationSettings(), outputs=Outputs(num_shown=2),
        show_progress=False,
    )  # fmt: skip
    [result] = report.results
    assert [row.source for row in result.worst] == ["5", "1"]
    assert [row.source for row in result.best] == ["4", "2"]
    assert result.worst[0].score == 0.0
    assert result.best[0].score == 1.0


def test_max_samples_and_pictures_are_spread_over_the_data_set(datasets):
    assert spread(10, None) == list(range(10))
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 9)
    result = run(model, "ade20k", max_samples=4, num_pictures=2)
    assert result.num_samples == 4
    assert len(result.sheet) == 2


def test_the_model_trains_on_after_an_evaluation(datasets):
    model = ToldModel()
    datasets["ade20k"] = semantic_world(model, 1)
    model.train()
    run(model, "ade20k")
    assert model.training
    assert torch.is_grad_enabled()


def test_a_data_set_that_is_not_there_is_said_before_anything_is_predicted(tmp_path):
    model = ToldModel()
    with pytest.raises(ValueError, match="unknown data set 'ade20j'"):
        evaluate(model, FakeProcessor(), ["ade20j"], tmp_path, EvaluationSettings())
    with pytest.raises(FileNotFoundError, match="ade20k"):
        evaluate(model, FakeProcessor(), ["ade20k"], tmp_path, EvaluationSettings())
    with pytest.raises(FileNotFoundError, match="--dataset_dir"):
        evaluate(model, FakeProcessor(), ["ade20k"], tmp_path / "nowhere", EvaluationSettings())
    assert model.calls == []


@pytest.mark.parametrize(
    "wrong",
    [{"val_batch_size": 0}, {"classes_per_query": 0}, {"presence_threshold": 1.5}, {"max_samples": -1}],
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluationSettings(**wrong)
