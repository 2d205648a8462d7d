"""AP of instances in the evaluation: own COCO data in, connected parts or the instances of a concept head counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from model.exports import FoundMask
from model.outputs import Segmentation
from tests.told_answers import answer_of
from tests.utils.data.coco_files import SPOKEN, annotation, box, content, write
from tests.utils.data.layouts import HEIGHT, WIDTH, box_polygon, uncompressed_rle
from tests.utils.evaluation.protocols.test_protocols import PAPER, Processor, TalkingModel
from utils.data.registry import build_val_dataset
from utils.evaluation.instances import MIN_SCORE
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.protocols import SemanticProtocol
from utils.evaluation.serialization import from_json, to_json

APART = [(2, 3, 8, 8), (18, 3, 8, 8)]  # left, top, width, height of two boats


class DrawnModel:
    """Answers every image with boats that are drawn as told, as one mask or as instances."""

    config = TalkingModel.config

    def __init__(self, boxes, *, scores=None):
        self.boxes, self.scores, self.options = boxes, scores, {}

    def segment_batch(self, images, classes, *, processor, **options):
        self.options = options
        parts = [box(*each) for each in self.boxes]
        masks = torch.from_numpy(np.max(parts, axis=0)).float()[None] * 20 - 10
        instances = None
        if self.scores is not None:
            instances = tuple(
                FoundMask(label="boat", pixels=part.astype(bool), probability=1.0, score=score)
                for part, score in zip(parts, self.scores, strict=True)
            )
        return [
            Segmentation(
                names=tuple(names), present=[name == "boat" for name in names], masks=masks, num_passes=1,
                probabilities=[float(name == "boat") for name in names], instances=instances,
            )
            for names in classes
        ]  # fmt: skip


def measured(tmp_path, model, *annotations, fields="exhaustive=true", **of_image):
    path = write(tmp_path, content(*annotations, **of_image))
    dataset = build_val_dataset(f"own_coco:{path}|{fields}", ".")
    protocol = SemanticProtocol(EvaluationSettings(), dataset.classes)
    samples = [dataset[0]]
    [prediction] = protocol.predict(model, Processor(PAPER), samples)
    records = [from_json(json.loads(json.dumps(to_json(protocol.record(samples[0], prediction)))))]
    return protocol.sections(records), protocol.notes(records), protocol.class_table(records)


def boats(boxes=APART, **more):
    return [annotation(5, [box_polygon(*each)], **more) for each in boxes]


def test_connected_parts_of_a_mask_are_its_instances(tmp_path):
    sections, _, table = measured(tmp_path, DrawnModel(APART), *boats())
    assert sections["instances"]["ap"] == pytest.approx(1)
    assert table["boat"]["ap"] == pytest.approx(1)
    assert math.isnan(table["gull"]["ap"])
    # Where boats touch, their mask has one part, which is none of them.
    touching = [(2, 3, 8, 8), (10, 3, 8, 8)]
    sections, _, _ = measured(tmp_path, DrawnModel(touching), *boats(touching))
    assert sections["semantic"]["miou"] == 1
    assert sections["instances"]["ap"] < 0.2


def test_a_concept_head_s_instances_are_counted_with_their_scores(tmp_path):
    touching = [(2, 3, 8, 8), (10, 3, 8, 8)]
    model = DrawnModel(touching, scores=[0.9, 0.4])
    assert measured(tmp_path, model, *boats(touching))[0]["instances"]["ap"] == pytest.approx(1)
    assert model.options["min_score"] == MIN_SCORE
    # The wrong one is ranked first: the precision is a half.
    model = DrawnModel([(20, 20, 8, 3), (2, 3, 8, 8)], scores=[0.9, 0.4])
    assert measured(tmp_path, model, *boats([(2, 3, 8, 8)]))[0]["instances"]["ap"] == pytest.approx(0.5)


def test_classes_of_which_an_image_says_nothing_are_not_judged(tmp_path):
    gulls = annotation(15, [box_polygon(2, 3, 8, 8)])
    unknown = measured(tmp_path, DrawnModel(APART), gulls, fields="exhaustive=false")
    assert unknown[0]["instances"]["ap"] == 0
    assert any(
        "leaves out 2 instances found of classes about which their image says nothing" in n
        for n in unknown[1]
    )
    partly = measured(tmp_path, DrawnModel(APART), *boats(), not_exhaustive_category_ids=[5])
    assert math.isnan(partly[0]["instances"]["ap"])
    denied = measured(tmp_path, DrawnModel(APART), gulls, fields="exhaustive=false", neg_category_ids=[5])
    assert not any("about which their image says nothing" in note for note in denied[1])


def test_a_crowd_is_no_instance_to_find(tmp_path):
    crowd = annotation(5, uncompressed_rle(box(18, 3, 8, 8)), iscrowd=1)
    sections, _, _ = measured(tmp_path, DrawnModel(APART), *boats(APART[:1]), crowd)
    assert sections["instances"]["ap"] == pytest.approx(1)


def test_answers_in_words_are_counted_too(tmp_path):
    path = write(tmp_path, content(*boats()))
    dataset = build_val_dataset(f"own_coco:{path}|exhaustive=true", ".")
    masks = torch.from_numpy(np.max([box(*each) for each in APART], axis=0)).float()[None] * 20 - 10

    class Talker(TalkingModel):
        def generate_batch(self, images, conversations, **_):
            return [answer_of("boat [SEG], traffic light [NEG], gull [NEG].", masks) for _ in conversations]

    protocol = SemanticProtocol(EvaluationSettings(free_generation=True), dataset.classes)
    [prediction] = protocol.predict(Talker(), Processor(PAPER), [dataset[0]])
    assert len(prediction.instances.masks) == 2
    code = {"size": [HEIGHT, WIDTH], "counts": prediction.instances.masks[0]}
    assert np.array_equal(coco_mask.decode(code), box(*APART[0]))
    sections = protocol.sections([protocol.record(dataset[0], prediction)])
    assert sections["instances"]["ap"] == pytest.approx(1)
    assert dataset.classes[0] == SPOKEN[0]
