"""--cuda_graphs: what surrounds the recordings. A CPU records nothing; here the work is done anew in its place."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.step import RunAgain
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from tests.utils.costs.test_flops import NUM_FEATURES, NUM_TEXT, VOCABULARY, batch, tiny_shape
from utils.config.training import TrainConfig
from utils.training import recordings
from utils.training.cuda_graphs import check_cuda_graphs, forget_recordings, record_parts
from utils.training.recordings import Run

FLAGS = {"cuda_graphs": True, "gradient_checkpointing": False, "pad_to_multiple_of": 32}


class Again(RunAgain):
    """Counts what it records and repeats."""

    recorded = replayed = 0

    def record(self, run: Run) -> Run:
        again = super().record(run)
        Again.recorded += 1

        def replay() -> None:
            Again.replayed += 1
            again()

        return replay


@pytest.fixture(autouse=True)
def counts_from_zero(monkeypatch):
    monkeypatch.setattr(Again, "recorded", 0)
    monkeypatch.setattr(Again, "replayed", 0)


def tiny_model(dropout: float = 0.0) -> LasagnaForConditionalGeneration:
    torch.manual_seed(0)
    model = LasagnaForConditionalGeneration(tiny_shape())
    model.vlm = add_lora(model.vlm, dropout=dropout)
    mark_trainable(model)
    return model.train()


def batch_of(num_text: int, seed: int = 0):
    inputs = batch(NUM_FEATURES, num_text, (56, 64), VOCABULARY - 1)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, inputs.sam_images.shape, generator=generator, dtype=torch.uint8)
    clip = torch.randint(256, (2, 3, 56, 56), generator=generator, dtype=torch.uint8)
    return replace(inputs, sam_images=pixels, vlm_images={"clip_images": clip})


def learn(model, batches, seed: int = 0):
    """Losses of some micro-batches, and the gradients that they add up to."""
    losses = []
    for number, inputs in enumerate(batches):
        torch.manual_seed(seed + number)
        loss = model(**inputs.fields()).loss
        loss.backward()
        losses.append(loss.item())
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_losses_and_added_gradients_stay(dropout):
    """Other images, another length, and back; random numbers are those without recordings."""
    batches = [batch_of(NUM_TEXT), batch_of(NUM_TEXT, 1), batch_of(NUM_TEXT + 3, 2), batch_of(NUM_TEXT, 3)]
    plain, plain_gradients = learn(tiny_model(dropout), batches)
    model = tiny_model(dropout)
    assert record_parts(model, Again) == ["language model", "SAM's encoder", "CLIP"]
    found, gradients = learn(model, batches)
    assert found == plain
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=0, atol=0)
    # Forward and backward of two lengths, and both encoders; each of four batches launches all of them.
    assert (Again.recorded, Again.replayed) == (2 * 2 + 2, 4 * 4)


def test_results_outlive_the_next_pass():
    model = tiny_model()
    record_parts(model, Again)
    first = model(**batch_of(NUM_TEXT).fields()).last_hidden_state
    kept = first.clone()
    model(**batch_of(NUM_TEXT, 1).fields())
    assert torch.equal(first, kept)


def test_a_pass_whose_memory_was_used_again_has_no_backward():
    model = tiny_model()
    record_parts(model, Again)
    loss = model(**batch_of(NUM_TEXT).fields()).loss
    model(**batch_of(NUM_TEXT, 1).fields())
    with pytest.raises(AssertionError, match="another pass"):
        loss.backward()


def test_only_training_is_recorded():
    model = tiny_model()
    record_parts(model, Again)
    with torch.no_grad():
        model(**batch_of(NUM_TEXT).fields())
    assert Again.recorded == 2  # the encoders alone
    model.eval()
    model(**batch_of(NUM_TEXT + 3).fields())
    assert (Again.recorded, Again.replayed) == (2, 2)


def test_weights_that_move_are_recorded_anew():
    model = tiny_model()
    record_parts(model, Again)
    learn(model, [batch_of(NUM_TEXT)])
    for weight in model.base_vlm.parameters():
        weight.data = weight.data.clone()
    before = Again.recorded
    learn(model, [batch_of(NUM_TEXT)])
    assert Again.recorded == before + 3  # not SAM's encoder, which stayed


def test_too_many_shapes_run_without(monkeypatch, caplog):
    monkeypatch.setattr(recordings, "MAX_RECORDINGS", 1)
    batches = [batch_of(NUM_TEXT), batch_of(NUM_TEXT + 3)]
    plain, _ = learn(tiny_model(), batches)
    model = tiny_model()
    record_parts(model, Again)
    with caplog.at_level(logging.WARNING):
        assert learn(model, batches)[0] == plain
        learn(model, batches)
    assert [record.message for record in caplog.records] == [
        "--cuda_graphs: 1 shapes are recorded, others run without; a larger --pad_to_multiple_of makes fewer of them"
    ]


def test_recordings_can_be_forgotten():
    model = tiny_model()
    record_parts(model, Again)
    forget_recordings(model)
    learn(model, [batch_of(NUM_TEXT)])
    assert Again.recorded == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"zero_stage": 3}, "--cuda_graphs does not go with --zero_stage 3"),
        ({"gradient_checkpointing": True}, "add --no_gradient_checkpointing"),
        (
            {"pad_to_multiple_of": 1},
            "with --pad_to_multiple_of 1 they have nearly every one; take at least 16",
        ),
        ({"attn_implementation": "flex_attention"}, "does not go with --attn_implementation flex_attention"),
        ({"attn_implementation": "flash_attention_2"}, "take auto or sdpa or eager"),
    ],
)
def test_what_does_not_go_together_is_said(changed, message):
    assert TrainConfig(version="a", **FLAGS).cuda_graphs
    with pytest.raises(ValueError, match=message):
        TrainConfig(version="a", **FLAGS | changed)


def test_a_gpu_is_needed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--cuda_graphs needs a CUDA GPU"):
        check_cuda_graphs()
