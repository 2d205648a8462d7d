"""Several questions about an image run its encoders once, and are answered as about the image itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from model.backbones.base import ImageFeatures
from model.checkpoints.load import load_model
from model.text.conversation import Conversation
from tests.tiny_weights import noise_image
from utils.config.chat import ChatConfig
from utils.evaluation.predict import predict_batch
from utils.evaluation.prompting import ROWS_PER_IMAGE, EvaluationSettings, ask_for_masks, ask_freely
from utils.serving.terminal import converse

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
NAMES = ["dog", "tree", "pool table", "sky", "road"]
QUESTION = "Where is the dog next to the tree?"


@pytest.fixture(scope="module", params=["paper", "lisa"])
def model(request, tiny_folders):
    """One that is decoded under constraint, and one that answers freely."""
    parts = tiny_folders.parts
    return load_model(tiny_folders.llava, dtype=torch.float32, format=request.param, **parts)[0]


@pytest.fixture
def encoded(model, monkeypatch):
    """How many images each call of an encoder got."""
    calls: dict[str, list[int]] = {"sam": [], "clip": []}
    sam, clip = model.sam.encode, model.image_features
    monkeypatch.setattr(
        model.sam, "encode", lambda images, *rest: (calls["sam"].append(len(images)), sam(images, *rest))[1]
    )
    monkeypatch.setattr(
        model,
        "image_features",
        lambda images, *rest: (calls["clip"].append(len(images["clip_images"])), clip(images, *rest))[1],
    )
    return calls


def assert_same(answers, expected):
    for answer, other in zip(answers, expected, strict=True):
        ours, theirs = vars(answer), vars(other)
        for name in ("masks", "states"):
            if ours.get(name) is not None:
                assert torch.equal(ours[name], theirs[name])
        tensors = {"masks": None, "states": None}
        assert {**ours, **tensors} == {**theirs, **tensors}


def test_answers_about_an_encoded_image_are_those_about_the_image(model, encoded):
    image = IMAGES[0]
    questions = [Conversation.of(text) for text in (QUESTION, "Why?", "And the tree?")]

    def ask(seen):
        return [
            model.segment(seen, NAMES),
            model.segment(seen, NAMES, classes_per_query=2),
            model.chat(seen, QUESTION, max_new_tokens=5),
            *model.segment_batch([seen], [NAMES[:2]]),
            *model.generate_batch([seen], questions, image_of_row=[0, 0, 0], max_new_tokens=5),
        ]

    expected = ask(image)
    for calls in encoded.values():
        calls.clear()
    assert_same(ask(model.encode(image)), expected)
    assert encoded == {"sam": [1], "clip": [1]}


def test_encoded_and_other_images_share_a_batch(model, encoded):
    batch = model.encode_batch(IMAGES)
    assert encoded == {"sam": [2], "clip": [2]}
    assert [image.original_size for image in batch] == [(40, 60), (50, 30)]
    assert model.encode_batch(batch) == batch
    lists = [NAMES[:2], NAMES[2:]]
    expected = model.segment_batch(IMAGES, lists)
    assert_same(model.segment_batch(batch, lists), expected)
    for mixed in ([batch[0], IMAGES[1]], [IMAGES[0], batch[1]]):
        for answer, other in zip(model.segment_batch(mixed, lists), expected, strict=True):
            assert answer.present == other.present
            torch.testing.assert_close(answer.masks, other.masks, rtol=1e-4, atol=1e-4)


def test_encoding_leaves_no_gradient_and_the_mode_as_it_was(model):
    model.train()
    image = model.encode(IMAGES[0])
    assert model.training
    model.eval()
    [features] = image.features.tokens
    assert not features.requires_grad
    assert torch.equal(features, model.encode(IMAGES[0]).features.tokens[0])


def test_an_image_that_another_model_encoded_is_refused(model):
    image = model.encode(IMAGES[0])
    [features] = image.features.tokens
    for other in (
        replace(image, features=ImageFeatures(tokens=(features[:, :-1],))),
        replace(image, embedding=tuple(level[:-1] for level in image.embedding)),
        replace(image, embedding=image.embedding * 2),
        replace(image, features=ImageFeatures(tokens=(features[:-1],))),
    ):
        with pytest.raises(ValueError, match="encoded by another model"):
            model.chat(other, QUESTION)


def test_a_conversation_encodes_its_image_once(model, encoded, tmp_path, monkeypatch, capsys):
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    lines = iter(
        [f":image {tmp_path / '0.png'}", ":classes dog, tree", QUESTION, ":classes sky", str(tmp_path / "none.png"),
         f":image {tmp_path / '1.png'}", QUESTION, ":quit"]
    )  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    config = ChatConfig(version="any", max_new_tokens=3, vis_save_path=str(tmp_path / "out"))
    converse(model, config)
    assert encoded == {"sam": [1, 1], "clip": [1, 1]}


def test_many_questions_of_an_evaluation_encode_an_image_once(model, encoded):
    settings = EvaluationSettings(classes_per_query=1, max_new_tokens=2, val_batch_size=2)
    many = [[(f"Where is dog {number}?",) for number in range(2 * ROWS_PER_IMAGE + 1)]] * 2
    answers = ask_for_masks(model, model.processor, IMAGES, many, settings)
    assert [len(of_image) for of_image in answers] == [len(many[0])] * 2
    names = [f"thing {number}" for number in range(ROWS_PER_IMAGE + 1)]
    predict_batch(model, model.processor, IMAGES, names, settings)
    ask_freely(model, model.processor, IMAGES, [names] * 2, settings)
    assert encoded == {"sam": [2, 2, 2], "clip": [2, 2, 2]}
