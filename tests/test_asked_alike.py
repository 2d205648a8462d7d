"""Validation, test_sem.py, chat.py and the API name as many classes in a query as training did."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import chat
import test_sem as evaluation_script
import train_ds
from model.checkpoints.load import load_model
from model.choices import DEFAULT_NEW_TOKENS
from model.lora import merge
from model.processor import LasagnaProcessor
from tests.tiny_weights import noise_image
from tests.utils.evaluation.told_model import ListDataset
from utils.config.chat import ChatConfig
from utils.config.inference import TestConfig
from utils.config.training import TrainConfig
from utils.data.types import SemanticSample
from utils.evaluation.prompting import EvaluationSettings
from utils.training import validation

CLASSES = ("sky", "tree", "dog", "cat", "road")
LIMIT = 2


@pytest.fixture(scope="module")
def in_training(tiny_folders):
    """The model as train_ds.py builds it, and the settings of the run."""
    config = TrainConfig(
        version=str(tiny_folders.llava),
        precision="fp32",
        num_all_classes=LIMIT,
        exp_name="alike",
        **tiny_folders.flags,
    )
    return train_ds.build_model(config)[0], config


@pytest.fixture(scope="module")
def folder(in_training, tmp_path_factory):
    """The same model as a folder."""
    path = tmp_path_factory.mktemp("alike") / "model"
    model, _ = in_training
    merge(model).save_pretrained(path)
    return path


@pytest.fixture
def samples():
    image = noise_image(40, 60)
    return [SemanticSample(image=image, label=np.zeros((40, 60), np.uint16), classes=CLASSES, source="a")]


@pytest.fixture
def queries(monkeypatch):
    """The names of each query, as it goes."""
    seen: list[tuple[str, ...]] = []
    plan = LasagnaProcessor.plan
    monkeypatch.setattr(
        LasagnaProcessor, "plan", lambda self, names: (seen.append(tuple(names)), plan(self, names))[1]
    )
    return seen


EXPECTED = [CLASSES[:2], CLASSES[2:4], CLASSES[4:]]


def test_validation_asks_as_training_does(in_training, samples, queries):
    model, config = in_training
    report = validation.validate(SimpleNamespace(module=model), {"ade20k": ListDataset(samples)}, config)
    assert queries == EXPECTED
    assert report.protocol["classes_per_query"] == LIMIT


@pytest.mark.parametrize("told", [[], ["--classes_per_query=5"]])
def test_an_evaluation_asks_as_training_did_unless_told_otherwise(
    folder, samples, queries, monkeypatch, tmp_path, told
):
    monkeypatch.setattr(evaluation_script, "open_list", lambda *_: {"ade20k": ListDataset(samples)})
    assert evaluation_script.main([f"--version={folder}", f"--report_dir={tmp_path}", *told]) == 0
    assert queries == ([CLASSES] if told else EXPECTED)


def test_images_without_ground_truth_are_asked_as_in_training(folder, queries, tmp_path):
    Image.fromarray(noise_image(40, 60)).save(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    flags = [f"--images={tmp_path / 'a.png'}", f"--classes={tmp_path / 'classes.txt'}"]
    assert (
        evaluation_script.main([f"--version={folder}", *flags, f"--save_predictions={tmp_path / 'o'}"]) == 0
    )
    assert queries == EXPECTED


def test_chat_asks_as_training_did(folder, queries, tmp_path):
    Image.fromarray(noise_image(40, 60)).save(tmp_path / "a.png")
    flags = [f"--image={tmp_path / 'a.png'}", f"--classes={', '.join(CLASSES)}"]
    assert chat.main([f"--version={folder}", *flags, f"--vis_save_path={tmp_path / 'o'}"]) == 0
    assert queries == EXPECTED


def test_the_api_asks_as_training_did_and_a_folder_that_does_not_say_it_means_80(folder, queries):
    model, _ = load_model(folder)
    model.segment(noise_image(), CLASSES)
    assert queries == EXPECTED
    content = model.config.to_dict()
    del content["num_all_classes"]
    assert type(model.config).from_dict(content).num_all_classes == 80
    with pytest.raises(ValueError, match="num_all_classes must be at least 1, got 0"):
        type(model.config)(num_all_classes=0)


def test_answers_are_cut_at_one_length_everywhere(folder, monkeypatch):
    lengths = [config(version="any").max_new_tokens for config in (TestConfig, ChatConfig)]
    lengths.append(EvaluationSettings().max_new_tokens)
    model, _ = load_model(folder)
    answer = model.chat(noise_image(), "Where is the dog?")  # untrained: it never ends by itself
    lengths.append(len(answer.token_ids))
    assert set(lengths) == {DEFAULT_NEW_TOKENS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_folder_is_asked_in_the_precision_that_it_stores_unless_told_otherwise(folder, tmp_path, dtype):
    load_model(folder, dtype=dtype)[0].save_pretrained(tmp_path)
    for script, kind in ((chat, ChatConfig), (evaluation_script, TestConfig)):
        for precision, expected in (("auto", dtype), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
            loaded = script.load(kind(version=str(tmp_path), precision=precision))
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            assert {value.dtype for value in model.parameters()} == {expected}, (kind, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_quantised_model_computes_in_the_16_bits_that_its_folder_stores(folder, tmp_path):
    load_model(folder, dtype=torch.bfloat16)[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--load_in_8bit needs a GPU"):
        load_model(tmp_path, quantization="8bit")
    with pytest.raises(ValueError, match="16 bit; pass --precision bf16 or fp16"):
        load_model(folder, quantization="8bit")
