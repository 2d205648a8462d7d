"""SAM files as `segment_anything` publishes them, sam_vit_{h,l,b}*.pth; and SAM-HQ, which holds a whole SAM."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from model.checkpoints.weights import prefix_of, without_prefix
from model.decoders.sam import SamSettings, sam_settings_from_state_dict

logger = logging.getLogger(__name__)

ENCODER = "image_encoder.pos_embed"
# What SAM-HQ adds to a SAM whose own weights it leaves as they are; in the names of its authors.
HQ_PARTS = tuple(
    f"mask_decoder.{name}"
    for name in ("hf_token.", "hf_mlp.", "compress_vit_feat.", "embedding_encoder.", "embedding_maskfeature.")
)


def is_sam(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a SAM."""
    return prefix_of(weights, ENCODER) is not None


def read_sam(weights: Mapping[str, Tensor]) -> tuple[SamSettings, dict[str, Tensor]]:
    """Sizes and weights of a SAM in the names of `segment_anything`.

    Raises:
        ValueError: they are something else.
    """
    named = without_prefix(weights, prefix_of(weights, ENCODER) or "")
    plain = {name: value for name, value in named.items() if not name.startswith(HQ_PARTS)}
    if len(plain) < len(named):
        logger.info("SAM-HQ: its SAM is taken; the high-quality token is left out, as masks come from [SEG]")
    return sam_settings_from_state_dict(plain), plain
