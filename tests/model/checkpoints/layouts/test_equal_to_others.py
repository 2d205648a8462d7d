"""SAM of published width against segment_anything's own; the LLaVA path against Hugging Face's own LLaVA."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration
from transformers.quantizers.quantizers_utils import should_convert_module

from model.checkpoints.layouts.mask_decoder import read_mask_decoder
from model.checkpoints.load import load_model
from model.checkpoints.quantize import KEPT
from model.checkpoints.weights import read_folder
from model.decoders.sam import SamSegmenter, build_sam, sam_settings_from_state_dict
from model.text.conversation import Conversation
from tests.tiny_weights import HIDDEN_DIM, edit_json, noise_image

# Of ViT-B's twelve blocks one with windows and one that sees the whole image, each in its full width.
NUM_BLOCKS = 2
SIZE = (1024, 700)  # of the image, its longest side resized


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    """A file of ViT-B's shapes, random, with two of its blocks; and segment_anything's model of it, untouched."""
    with torch.device("meta"):
        published = sam_settings_from_state_dict(sam_model_registry["vit_b"]().state_dict())
    assert (published.encoder_dim, published.encoder_depth) == (768, 12)
    settings = replace(published, encoder_depth=NUM_BLOCKS, encoder_global_blocks=(1,))
    torch.manual_seed(0)
    reference = build_sam(settings).eval()
    for parameter in reference.parameters():
        # segment_anything starts its position tables at zero, which would hide a mistake in them.
        torch.nn.init.normal_(parameter, std=0.02)
    assert type(reference.image_encoder) is ImageEncoderViT
    assert type(reference.mask_decoder) is MaskDecoder
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(reference.state_dict(), path)
    settings, weights = read_mask_decoder(path)
    ours = SamSegmenter(settings).eval()
    ours.load_state_dict(weights)
    return reference, ours


@pytest.fixture(scope="module")
def encoded(vit_b):
    """Our embedding of an image, and theirs."""
    reference, ours = vit_b
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE), dtype=np.uint8)
    images = torch.from_numpy(pixels)
    with torch.no_grad():
        return ours.encode(images, [SIZE])[0], reference.image_encoder(reference.preprocess(images))


def relative(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


def test_the_image_encoder_equals_segment_anything(encoded):
    assert relative(*encoded) < 1e-5


@pytest.mark.parametrize("num_prompts", [0, 1, 7])
def test_the_mask_decoder_equals_segment_anything(vit_b, encoded, num_prompts):
    reference, ours = vit_b
    embeddings, _ = encoded
    torch.manual_seed(num_prompts)
    prompts = torch.randn(num_prompts, 256)
    with torch.no_grad():
        masks = ours.decode(prompts.unsqueeze(1), (embeddings,), [0] * num_prompts)
        assert masks.shape == (num_prompts, 256, 256)
        assert masks.dtype == torch.float32
        sparse, dense = reference.prompt_encoder(None, None, None)
        assert sparse.shape[1] == 0
        for mask, prompt in zip(masks, prompts, strict=True):
            expected, _ = reference.mask_decoder(
                image_embeddings=embeddings,
                image_pe=reference.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompt.view(1, 1, -1),
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            assert relative(mask, expected[0, 0]) < 1e-5
            size = (300, 400)
            expected = reference.postprocess_masks(expected, SIZE, size)
            assert relative(ours.resize_masks(mask.unsqueeze(0), SIZE, size), expected[0]) < 1e-5


def test_bfloat16_is_within_three_percent_of_the_largest_value(vit_b, encoded):
    """With all twelve blocks: 0.9 % after the encoder, 1.8 % in the masks of seven prompts."""
    rounded = copy.deepcopy(vit_b[1]).bfloat16()
    prompts = torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = vit_b[1].decode(prompts, encoded[:1], [0, 0])
        assert relative(rounded.decode(prompts, (encoded[0].bfloat16(),), [0, 0]), exact) < 0.03


def test_no_prompt_is_no_mask_in_bfloat16_too(vit_b, encoded):
    masks = vit_b[1].decode(torch.zeros(0, 1, 256), (encoded[0].bfloat16(),), [])
    assert (masks.shape, masks.dtype) == ((0, 256, 256), torch.float32)


@pytest.mark.parametrize(("projector", "aspect"), [("linear", "square"), ("mlp2x_gelu", "pad")])
def test_text_logits_equal_hugging_face_s_llava(tiny_folders, tmp_path, projector, aspect):
    folder = shutil.copytree(tiny_folders.llava, tmp_path / "llava")
    if projector != "linear":
        weights = read_folder(tiny_folders.llava)
        for kind in ("weight", "bias"):
            weights[f"model.mm_projector.0.{kind}"] = weights.pop(f"model.mm_projector.{kind}")
        weights["model.mm_projector.2.weight"] = torch.randn(HIDDEN_DIM, HIDDEN_DIM)
        weights["model.mm_projector.2.bias"] = torch.randn(HIDDEN_DIM)
        torch.save(weights, folder / "pytorch_model.bin")
    edit_json(folder / "config.json", mm_projector_type=projector, image_aspect_ratio=aspect)
    model, processor = load_model(folder, dtype=torch.float32, **tiny_folders.parts)
    stock = LlavaForConditionalGeneration(model.config.vlm_config).eval()
    stock.load_state_dict(model.vlm.state_dict(), strict=True)
    images = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]
    rows = [Conversation.of("What is it?", "A dog."), Conversation.of("Where is the red house?", "Left.")]
    batch = processor.collate(images, rows, [0, 1])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.clip_mean, model.config.clip_std))
    with torch.no_grad():
        output = model(**batch.fields())
        expected = stock(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=(batch.vlm_images["clip_images"].float() / 255 - mean) / std,
            output_hidden_states=True,
        )
    seen = batch.attention_mask.bool()
    assert relative(output.logits[seen], expected.logits[..., : model.config.image_token_id][seen]) < 1e-5
    assert relative(output.last_hidden_state[seen], expected.hidden_states[-1][seen]) < 1e-5


@pytest.mark.parametrize("whole", [True, False], ids=["our folder", "the LLaVA of other layouts"])
def test_only_the_language_model_s_layers_are_quantised(tiny_model, whole):
    model = tiny_model if whole else tiny_model.vlm
    quantised = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, KEPT)
    }
    layers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model.layers" in name
    }
    assert quantised == layers
    assert len(layers) == 2 * 7
    assert BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT).llm_int8_skip_modules == KEPT
