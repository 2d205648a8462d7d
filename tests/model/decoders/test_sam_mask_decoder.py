"""The mask decoder in few operations is that of segment_anything and transformers, forward and backward."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from segment_anything.modeling import MaskDecoder

from benchmarks.mask_decoders import as_segment_anything, as_transformers
from model.decoders.sam import build_sam
from model.decoders.sam2 import KINDS, Sam2Settings
from model.decoders.sam_mask_decoder import FusedFineMaskDecoder, FusedMaskDecoder
from tests.tiny_weights import SAM, SAM2, SAM3

DIM = SAM.prompt_embed_dim


@pytest.fixture
def eager() -> MaskDecoder:
    torch.manual_seed(0)
    decoder = build_sam(SAM).mask_decoder.double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder


def inputs(num_masks: int, num_tokens: int) -> tuple[torch.Tensor, ...]:
    """Prompts, image embeddings, and positions."""
    options = {"dtype": torch.float64, "requires_grad": True}
    side = SAM.grid_size
    prompts = torch.randn(num_masks, num_tokens, DIM, **options)
    return prompts, torch.randn(num_masks, DIM, *side, **options), torch.randn(1, DIM, *side).double()


@pytest.mark.parametrize(("num_masks", "num_tokens"), [(1, 1), (3, 1), (2, 4)])
def test_masks_quality_and_every_gradient_equal_segment_anything(eager, num_masks, num_tokens):
    ours = FusedMaskDecoder(deepcopy(eager))
    assert list(ours.state_dict()) == list(eager.state_dict())  # also their order: optimizer states keep it
    given = inputs(num_masks, num_tokens)
    expected, quality = as_segment_anything(eager, *given)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    gradients = [part.grad for part in given[:2]]

    prompts, image = (part.detach().requires_grad_() for part in given[:2])
    actual, tokens = ours(prompts, image, given[2])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.iou_prediction_head(tokens)[:, :1], quality, rtol=1e-9, atol=1e-9)
    (actual * weight).sum().backward()
    for part, gradient in zip((prompts, image), gradients, strict=True):
        torch.testing.assert_close(part.grad, gradient, rtol=1e-9, atol=1e-9)
    theirs = dict(eager.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith("iou_prediction_head"):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_as_near_to_the_exact_masks_as_segment_anything(eager, dtype):
    given = inputs(4, 1)
    with torch.no_grad():
        exact, _ = as_segment_anything(eager, *given)
        rounded = [part.to(dtype) for part in given]
        theirs, _ = as_segment_anything(deepcopy(eager).to(dtype), *rounded)
        ours, _ = FusedMaskDecoder(deepcopy(eager)).to(dtype)(*rounded)
    assert ours.dtype == dtype
    error = [float((masks.double() - exact).norm() / exact.norm()) for masks in (ours, theirs)]
    assert error[0] < 1.5 * error[1] < 0.2


def test_only_transposed_convolutions_that_do_not_overlap_are_replaced(eager):
    eager.output_upscaling[0] = torch.nn.ConvTranspose2d(DIM, 4, kernel_size=3, stride=2)
    with pytest.raises(AssertionError):
        FusedMaskDecoder(eager)


def fine_eager(settings: Sam2Settings) -> torch.nn.Module:
    torch.manual_seed(0)
    decoder = KINDS[settings.kind].model(deepcopy(settings.config)).mask_decoder.double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder


def fine_inputs(settings: Sam2Settings, num_masks: int, num_tokens: int) -> list[torch.Tensor]:
    """Prompts, image embeddings, positions, and the two finer levels."""
    shapes, options = settings.embedding_shapes, {"dtype": torch.float64, "requires_grad": True}
    prompts = torch.randn(num_masks, num_tokens, settings.prompt_embed_dim, **options)
    fine, middle, coarse = (torch.randn(num_masks, *shape, **options) for shape in shapes)
    return [prompts, coarse, torch.randn(1, *shapes[-1]).double(), fine, middle]


@pytest.mark.parametrize("settings", [SAM2, SAM3], ids=lambda settings: settings.kind)
@pytest.mark.parametrize(("num_masks", "num_tokens"), [(1, 1), (3, 2)])
def test_masks_and_every_gradient_equal_transformers(settings, num_masks, num_tokens):
    eager = fine_eager(settings)
    ours = FusedFineMaskDecoder(deepcopy(eager))
    assert list(ours.state_dict()) == list(eager.state_dict())  # also their order: optimizer states keep it
    given = fine_inputs(settings, num_masks, num_tokens)
    expected = as_transformers(eager, *given)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    copies = [part.detach().requires_grad_(part.requires_grad) for part in given]
    actual, _ = ours(*copies)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    (actual * weight).sum().backward()
    for part, theirs in zip(copies, given, strict=True):
        torch.testing.assert_close(part.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    gradients = {name: parameter.grad for name, parameter in eager.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-9, msg=name)
