"""SAM files as `segment_anything` publishes them: sam_vit_{h,l,b}*.pth."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from model.checkpoints.weights import read_weight_file, what_is_in, without_prefix
from model.decoders.sam import SamSettings, sam_settings_from_state_dict
from model.errors import UserError

ENCODER = "image_encoder.pos_embed"


def is_sam_file(path: Path) -> bool:
    """Whether a file holds a SAM. Raises a ValueError for what is no weight file at all."""
    return ENCODER in sam_weights(path)


def sam_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file; one prefix before every name ("sam.", "model.") is taken off."""
    weights = read_weight_file(path)
    prefix = next((name.removesuffix(ENCODER) for name in weights if name.endswith(f".{ENCODER}")), "")
    if prefix and all(name.startswith(prefix) for name in weights):
        weights = without_prefix(weights, prefix)
    return weights


def read_sam(path: str | Path) -> tuple[SamSettings, dict[str, Tensor]]:
    """Sizes and weights of a SAM file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise FileNotFoundError(f"--vision_pretrained {path} is a folder; pass SAM's .pth file inside it")
    if not path.is_file():
        raise FileNotFoundError(
            f"--vision_pretrained {path} does not exist; pass one of sam_vit_{{h,l,b}}*.pth"
        )
    weights = sam_weights(path)
    try:
        return sam_settings_from_state_dict(weights), weights
    except (UserError, KeyError) as error:
        raise UserError(
            f"--vision_pretrained {path}: {error}; the file holds {what_is_in(weights)}"
        ) from error
