"""FLOPs of SAM 2, and of SAM 3's tracker and detector, are what torch's counter counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoints.layouts import sam2
from model.decoders.build import build_decoder
from model.decoders.concept_settings import ConceptSettings
from model.decoders.sam2 import Sam2Settings
from tests.tiny_weights import CONCEPT, SAM2, SAM3
from utils.costs.concept_flops import drawing, looking, neck_flops
from utils.costs.decoder_flops import encoder_flops, mask_head_flops

PUBLISHED = [
    sam2.published("tiny"), sam2.published("base_plus"), Sam2Settings(kind="sam3_tracker"), ConceptSettings()
]  # fmt: skip


def count(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("settings", [SAM2, SAM3, CONCEPT, *PUBLISHED])
def test_encoding_is_what_the_counter_counts(settings):
    side = settings.image_size
    with torch.device("meta"):
        decoder = build_decoder(settings)
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        counted = count(lambda: decoder.encode(images, [(side, side)]))
    flops = encoder_flops(settings, folded=True)
    assert flops.forward + flops.extra == pytest.approx(counted, rel=1e-3)
    assert flops.backward == 0
    assert flops.extra < 0.02 * counted or settings.prompt_embed_dim < 256


@pytest.mark.parametrize("settings", [SAM2, PUBLISHED[0], PUBLISHED[2]])
def test_decoding_is_what_the_counter_counts_forward_and_backward(settings):
    with torch.device("meta"):
        decoder = build_decoder(settings)
        for name, parameter in decoder.named_parameters():
            frozen = ("iou_prediction_head", "pred_obj_score_head", "conv_s")
            parameter.requires_grad_(
                name.startswith("mask_decoder.") and not any(part in name for part in frozen)
            )
        levels = tuple(torch.zeros(1, *shape) for shape in settings.embedding_shapes)
        prompt = torch.zeros(1, 1, settings.prompt_embed_dim, requires_grad=True)
        positions = torch.zeros(1, *settings.embedding_shapes[-1])
        counted = count(lambda: decoder.low_res_masks(prompt, levels, positions, None).sum().backward())
    assert mask_head_flops(settings, num_masks=1).total == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("settings", [CONCEPT, PUBLISHED[3]])
def test_a_concept_is_what_the_counter_counts_without_recomputation(settings):
    with torch.device("meta"):
        decoder = build_decoder(settings)
        decoder.recomputes = False  # else the counter loses track of modules
        decoder.requires_grad_(False)
        levels = tuple(torch.zeros(1, *shape) for shape in settings.embedding_shapes)
        prompt = torch.zeros(1, settings.states_per_class, settings.prompt_embed_dim, requires_grad=True)
        presence = count(lambda: decoder.presence(prompt, levels, [0]).sum().backward())
        found = count(lambda: decoder.decode(prompt, levels, [0]).sum().backward())
    absent = looking(settings) + neck_flops(settings, 1)
    present = looking(settings) + drawing(settings) + neck_flops(settings)
    assert absent.model == pytest.approx(presence, rel=0.05)
    assert present.model == pytest.approx(found, rel=0.2)  # without a loss of presence
    head = mask_head_flops(settings, num_masks=1, num_images=1, num_absent=1)
    assert head.total == pytest.approx((absent + present).total)
    # What is recomputed is the forward pass, but for the neck.
    assert present.extra == present.forward - neck_flops(settings).forward
