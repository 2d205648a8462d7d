"""The real sizes (LLaMA 7B, CLIP ViT-L/14, SAM ViT-H) in bfloat16 on a GPU, without one.

Fake tensors have shape, dtype and device but no memory. A tensor left on the CPU and a dtype that does not
match raise as they would on a real card; so does a value that the host reads, which would stall one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from model.config import LasagnaConfig
from model.decoders.sam import SamSettings
from model.generation.decoding import decode_choices
from model.generation.greedy import greedy
from model.inputs import ModelInputs
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from model.spatial_prompt import SpatialPrompt
from model.text.answer_plan import AnswerPlan
from model.text.format import SequenceFormat
from model.text.placeholder import Placeholder
from model.token_grid import TokenGrid
from tests.fake_gpu import needs_fake_gpu

VOCABULARY, NUM_PATCHES, TEXT_LENGTH = 32006, 256, 120
SIZES = [(768, 1024), (1024, 683)]
ORIGINAL = [(480, 640), (600, 400)]
NUM_MASKS = [3, 1]
NUM_LEARNED = 700  # tokens: the text loss takes two pieces
FAKE = FakeTensorMode(shape_env=ShapeEnv())


def full_config():
    vlm = LlavaConfig(
        text_config=LlamaConfig(vocab_size=VOCABULARY),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        ),
        projector_hidden_act="linear",
        image_token_index=VOCABULARY - 1,
    )
    return LasagnaConfig(
        vlm_config=vlm,
        sam_config=SamSettings().to_dict(),
        sequence_format=SequenceFormat.named("paper").to_dict(),
        image_token_id=VOCABULARY - 1,
        seg_token_id=VOCABULARY - 2,
        neg_token_id=VOCABULARY - 3,
        dtype=torch.bfloat16,
    )


@pytest.fixture(scope="module")
def model():
    """The model with adapters, its weights fake tensors on a GPU."""
    with torch.device("meta"):
        model = LasagnaForConditionalGeneration(full_config())
    model.vlm = add_lora(model.vlm)
    mark_trainable(model)
    with FAKE:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake = torch.empty(weight.shape, dtype=torch.bfloat16, device="cuda")
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return model


def batch_on(device="cuda"):
    """Two images, three rows, four [SEG]; what the host knows stays on the host."""
    length = NUM_PATCHES + TEXT_LENGTH
    return ModelInputs(
        input_ids=torch.zeros(3, length, dtype=torch.long, device=device),
        attention_mask=torch.ones(3, length, dtype=torch.long, device=device),
        labels=torch.zeros(3, length, dtype=torch.long, device=device),
        learned_rows=torch.zeros(NUM_LEARNED, dtype=torch.long, device=device),
        learned_columns=torch.ones(NUM_LEARNED, dtype=torch.long, device=device),
        vlm_images={"clip_images": torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device=device)},
        placeholders=(Placeholder(ids=(), num_image_tokens=256),) * 2,
        token_grids=(TokenGrid(size=(16, 16), region=(0, 80, 480, 560)),) * 2,
        grid_places=(torch.zeros(256, dtype=torch.long, device=device),) * 2,
        sam_images=torch.zeros(2, 3, 1024, 1024, dtype=torch.uint8, device=device),
        resized_sizes=tuple(SIZES),
        original_sizes=tuple(ORIGINAL),
        image_of_row=(0, 0, 0),
        seg_rows=torch.zeros(4, dtype=torch.long, device=device),
        seg_columns=torch.ones(4, dtype=torch.long, device=device),
        seg_images=(0, 0, 0, 1),
        gt_masks=tuple(
            torch.zeros(count, *size, dtype=torch.uint8, device=device)
            for count, size in zip(NUM_MASKS, ORIGINAL, strict=True)
        ),
    )


@needs_fake_gpu
def test_a_training_step_fits_together_on_a_gpu(model):
    model.train()
    with FAKE:
        output = model(**batch_on().fields(), return_predictions=True)
        assert output.loss.device.type == "cuda"
        assert output.loss.dtype == torch.float32
        assert output.logits.shape == (3, NUM_PATCHES + TEXT_LENGTH, VOCABULARY - 1)
        expected = [(count, *size) for count, size in zip(NUM_MASKS, ORIGINAL, strict=True)]
        assert [tuple(masks.shape) for masks in output.masks] == expected
        assert all(masks.dtype == torch.float32 for masks in output.masks)


@needs_fake_gpu
def test_a_batch_without_seg_fits_together_on_a_gpu(model):
    model.train()
    with FAKE:
        nowhere = torch.zeros(0, dtype=torch.long, device="cuda")
        batch = batch_on()
        batch = replace(
            batch,
            seg_rows=nowhere,
            seg_columns=nowhere,
            seg_images=(),
            gt_masks=tuple(masks[:0] for masks in batch.gt_masks),
        )
        output = model(**batch.fields())
        assert output.loss.device.type == "cuda"
        assert (output.logits, output.masks) == (None, None)


@needs_fake_gpu
def test_a_spatial_prompt_fits_together_on_a_gpu(model, monkeypatch):
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FAKE, torch.device("cuda"):
            spatial = SpatialPrompt(4096, 256, num_latent_prompts=2)
    finally:
        torch.set_default_dtype(torch.float32)
    with FAKE:
        monkeypatch.setattr(model, "spatial_prompt", spatial)
        output = model(**batch_on().fields(), return_predictions=True)
        assert output.losses.map_bce.device.type == output.masks[0].device.type == "cuda"


@pytest.fixture
def prompts(model):
    """The model and what both encoders make of two images, with the prompts of three rows."""
    model.eval()
    with FAKE, torch.no_grad():
        batch = batch_on()
        images = model.encode_images(
            batch.vlm_images,
            batch.placeholders,
            batch.token_grids,
            batch.resized_sizes,
            batch.original_sizes,
            sam_images=batch.sam_images,
        )
        prompt = model.embed(batch.input_ids, images.features.select(batch.image_of_row))
    return model, images, prompt, batch.attention_mask


@needs_fake_gpu
def test_an_answer_is_generated_and_drawn_on_a_gpu(prompts, monkeypatch):
    model, images, prompt, mask = prompts
    words = iter([[5, 5, 5], [6, 6, 2], [2, 2]])
    monkeypatch.setattr("model.generation.greedy.to_host", lambda tokens: next(words))
    with FAKE, torch.no_grad():
        tokens, states = greedy(model, prompt, mask, eos=2, max_new_tokens=9)
        assert tokens == [[5, 6, 2], [5, 6, 2], [5, 2]]
        masks = model.decode_masks([state[1:] for state in states], images, [0, 0, 1])
        assert [tuple(m.shape) for m in masks] == [(2, *ORIGINAL[0]), (2, *ORIGINAL[0]), (1, *ORIGINAL[1])]
        assert {(m.device.type, m.dtype) for m in masks} == {("cuda", torch.float32)}


@needs_fake_gpu
def test_a_complex_query_is_decoded_and_drawn_on_a_gpu(prompts, monkeypatch):
    model, images, prompt, mask = prompts
    seg, neg = model.config.seg_token_id, model.config.neg_token_id
    plan = AnswerPlan(names=("dog", "tree"), token_ids=(7, seg, 8, 9, seg), positions=(1, 4))
    # Logits have no values here: every choice that the host reads is [SEG].
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: [1.0] * len(tensor))
    with FAKE, torch.no_grad():
        answers = decode_choices(
            model.base_vlm.model.language_model,
            model.text_logits,
            prompt,
            mask,
            [plan] * 3,
            seg_id=seg,
            neg_id=neg,
        )
        masks = model.decode_masks([answer.seg_states for answer in answers], images, [0, 0, 1])
    assert [answer.present for answer in answers] == [[True, True]] * 3
    assert [tuple(m.shape) for m in masks] == [(2, *ORIGINAL[0])] * 2 + [(2, *ORIGINAL[1])]
    assert {(m.device.type, m.dtype) for m in masks} == {("cuda", torch.float32)}
