"""The toy base of another family says what the toy LLaVA says, and trains by the generic path."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.load import load_model
from tests.commands import QUICK, REPOSITORY, losses_of, run
from utils.toy.demo import CONFIGS, write_base
from utils.toy.pretrain.common import HELD_OUT_SEED, batches
from utils.toy.pretrain.smolvlm import NUM_ROWS, SmolStudent
from utils.toy.scene import draw_scene

ASSETS = REPOSITORY / "assets" / "toy"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base's folder, put together from the shipped files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        folder = tmp_path_factory.mktemp("smolvlm") / "base"
        assert write_base("smolvlm", folder) == ["--version", str(folder)]
    return folder


@pytest.fixture(scope="module")
def models(base):
    """The SmolVLM and the LLaVA."""
    sam = str(ASSETS / "sam2")
    ours, _ = load_model(str(base), sam=sam)
    theirs, _ = load_model(str(ASSETS / "llava"), vision_tower=str(ASSETS / "clip"), sam=sam)
    return ours, theirs


def test_it_is_a_smolvlm_with_unused_rows_for_new_tokens(models):
    ours, _ = models
    assert ours.config.vlm_config.model_type == "smolvlm"
    assert ours.get_input_embeddings().num_embeddings == NUM_ROWS


def test_its_image_tokens_are_those_of_the_llava(base, models):
    """Held-out scenes: the tower and the connector were trained to give these features."""
    student = SmolStudent(ASSETS / "clip", ASSETS / "llava")
    vlm = models[0].backbone.vlm.model
    student.tower.load_state_dict(vlm.vision_model.state_dict())
    student.connector.load_state_dict(vlm.connector.state_dict())
    with torch.no_grad():
        scores = student.losses(student.prepare(next(batches(HELD_OUT_SEED, 8))))
    assert scores["cosine"] > 0.98


def test_it_answers_as_the_llava_does(models):
    questions = (
        "Is there a tree in the image?",
        "Is there a boat in the image?",
        "Is there a car in the image?",
    )
    asked = [
        (draw_scene(HELD_OUT_SEED, index).image, question) for index in range(4) for question in questions
    ]
    ours, theirs = ([model.chat(image, question).text for image, question in asked] for model in models)
    assert sum(one == other for one, other in zip(ours, theirs, strict=True)) >= 10


def test_it_trains(base, at_work, tmp_path):
    flags = ["--config", str(REPOSITORY / CONFIGS["smolvlm"]), *QUICK, f"--version={base}", "--vision_tower=",
             f"--log_base_dir={tmp_path}", "--exp_name=smol", "--epochs=1"]  # fmt: skip
    assert run("train_ds", *flags) == 0
    assert len(losses_of(tmp_path / "smol")) == 2
