"""What is passed as --vision_pretrained: SAM, SAM-HQ, SAM 2 or SAM 3, a file or a folder, told by its content."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from model.checkpoints.layouts import hf_sam, sam, sam2, sam3
from model.checkpoints.weights import read_folder, read_weight_file, what_is_in
from model.choices import CONCEPT_HEAD, SAM_HEAD
from model.decoders.base import DecoderSettings
from model.decoders.build import head_of
from model.errors import UserError
from model.files import read_json
from model.folders import local_folder
from model.huggingface import readable

FLAG = "--vision_pretrained"
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
KNOWN = "sam_vit_{h,l,b}*.pth, sam_hq_vit_*.pth, sam2*_hiera_*.pt"
# model_type in config.json of folders in Hugging Face's layout.
HF_SAM = ("sam", "sam_hq")
HF_SAM2 = {
    "sam2": "sam2",
    "sam2_video": "sam2",
    "sam3_tracker": "sam3_tracker",
    "sam3_tracker_video": "sam3_tracker",
    "sam3_video": "sam3_tracker",
}

# Folders with a detector of concepts: alone, or beside the tracker.
DETECTOR, DETECTOR_AND_TRACKER = "sam3", "sam3_video"
HF_KINDS = (*HF_SAM, *HF_SAM2, DETECTOR)


def is_mask_decoder_file(path: Path) -> bool:
    """Whether a file holds a mask decoder. Raises a ValueError for what is no weight file at all."""
    weights = read_weight_file(path)
    return sam.is_sam(weights) or sam2.is_sam2(weights)


def read_mask_decoder(path: str | Path, head: str | None = None) -> tuple[DecoderSettings, dict[str, Tensor]]:
    """Sizes and weights, named as in our module.

    Args:
        path: a weight file, a folder in Hugging Face's layout, or the name of such a repository on the hub.
        head: what --mask_head asks for; None: what is there, of a SAM 3 with both the tracker.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is something else; the message says what.
    """
    place = Path(path).expanduser()
    if not place.exists() and (place.suffix in SUFFIXES or str(path).count("/") != 1):
        raise FileNotFoundError(f"{FLAG} {path} does not exist; pass one of {KNOWN}, or a folder")
    folder = None if place.is_file() else local_folder(path, flag=FLAG)
    with readable("a mask decoder", f"{FLAG} {path}", "copy or download it again"):
        found = _read_file(place) if folder is None else _read_folder(folder, head)
    check_head(found[0], head, f"{FLAG} {path}")
    return found


def check_head(settings: DecoderSettings, head: str | None, source: str) -> None:
    """UserError unless a decoder is what --mask_head asks for; None asks for nothing."""
    if head in (None, head_of(settings)):
        return
    cure = {
        CONCEPT_HEAD: f"take a SAM 3 with its detector (model_type {DETECTOR} or {DETECTOR_AND_TRACKER})",
        SAM_HEAD: f"leave --mask_head out, or take a folder with the tracker (model_type {DETECTOR_AND_TRACKER})",
    }
    raise UserError(f"--mask_head {head}: {source} has {settings.title}; {cure[str(head)]}")


def _read_file(path: Path) -> tuple[DecoderSettings, dict[str, Tensor]]:
    weights = read_weight_file(path)
    try:
        if sam2.is_sam2(weights):
            return sam2.read_original(weights)
        if any(name.startswith("vision_encoder.") for name in weights):
            raise UserError("these are weights in Hugging Face's layout; pass their folder, with config.json")
        return sam.read_sam(weights)
    except (UserError, KeyError) as error:
        raise UserError(f"{FLAG} {path}: {error}; the file holds {what_is_in(weights)}") from error


def _read_folder(folder: Path, head: str | None) -> tuple[DecoderSettings, dict[str, Tensor]]:
    content = read_json(folder / "config.json")
    kind = content.get("model_type")
    if not content:
        raise FileNotFoundError(
            f"{FLAG} {folder} is a folder without config.json; pass the weight file inside it ({KNOWN}), or a folder "
            "in Hugging Face's layout"
        )
    if not isinstance(kind, str) or kind not in HF_KINDS:
        raise UserError(f"{FLAG} {folder} is a folder of model_type {kind!r}; known: {', '.join(HF_KINDS)}")
    try:
        weights = read_folder(folder)
        if kind in HF_SAM:
            return sam.read_sam(hf_sam.original_names(weights))
        if kind == DETECTOR or (kind == DETECTOR_AND_TRACKER and head == CONCEPT_HEAD):
            return sam3.read_detector(folder, weights)
        return sam2.read_hugging_face(folder, HF_SAM2[kind], weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{FLAG} {error}") from error
    except KeyError as error:
        raise UserError(
            f"{FLAG} {folder}: there is no weight {error}; copy or download the folder again"
        ) from error
