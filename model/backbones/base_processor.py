"""The processor of a base's folder: read without the folder's code, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoImageProcessor, AutoProcessor, Idefics3Processor, ProcessorMixin

from model.errors import UserError
from model.files import read_json
from model.huggingface import from_pretrained, readable
from model.text.tokenizer_files import load_tokenizer

MAX_IMAGE_TOKENS = 65_536
MAX_SIDE, MAX_PATCHES = 8192, 1024
PATCHES = ("patch_size", "merge_size", "temporal_patch_size", "min_patches", "max_patches")
EXAMPLE = np.zeros((64, 64, 3), dtype=np.uint8)
LENGTHS = ("image_seq_len", "image_seq_length", "num_image_tokens")


@dataclass(frozen=True)
class BaseProcessor:
    """The processor of a base, and how it writes an image in a text."""

    processor: ProcessorMixin
    placeholder: str  # of `EXAMPLE`


def read_processor(folder: Path) -> BaseProcessor:
    """The processor of a base's folder; no code of the folder runs.

    Raises:
        UserError: there is no image processor, or no chat template.
    """
    kinds = [read_json(folder / name) for name in ("processor_config.json", "preprocessor_config.json")]
    if not any(kinds):
        raise UserError(
            f"{folder} has no image processor (preprocessor_config.json); copy it from where the weights come from"
        )
    if any("SmolVLM" in str(kind.get("processor_class")) for kind in kinds):
        # SmolVLM's own class wants packages for video; for images it does what Idefics3's does.
        lengths = [kind["image_seq_len"] for kind in kinds if "image_seq_len" in kind]
        tokenizer = load_tokenizer(folder)
        processor = Idefics3Processor(
            image_processor=from_pretrained(AutoImageProcessor, folder),
            tokenizer=tokenizer,
            chat_template=tokenizer.chat_template,
            **({"image_seq_len": lengths[0]} if lengths else {}),
        )
    else:
        processor = from_pretrained(AutoProcessor, folder)
    if not hasattr(processor, "image_processor"):
        raise UserError(f"{folder} has no image processor; pass an image-text-to-text model")
    check_sizes(processor, folder)
    with readable("an image processor", f"the settings of {folder}"):
        placeholder = processor.replace_image_token(processed(processor, EXAMPLE), 0)
    return BaseProcessor(processor, placeholder)


def processed(processor: ProcessorMixin, image: np.ndarray) -> Any:
    """What the image processor of a base makes of an image, (height, width, 3) uint8."""
    reader = processor.image_processor
    known = reader.valid_kwargs.__annotations__
    if hasattr(processor, "images_kwargs"):
        own = processor.images_kwargs or {}
    else:  # transformers 5.18 and older
        kinds = getattr(processor, "valid_processor_kwargs", None)
        own = getattr(kinds, "_defaults", {}).get("images_kwargs", {})
    options = {name: value for name, value in own.items() if name in known}
    return reader([image], return_tensors="pt", input_data_format="channels_last", **options)


def check_sizes(processor: ProcessorMixin, folder: Path) -> None:
    """UserError for sizes of images, tiles or placeholders that no model has, before anything is made of them."""
    reader = processor.image_processor
    most = MAX_SIDE**2 if hasattr(reader, "merge_size") else MAX_SIDE  # areas in the Qwen family
    found = [
        (f"{name}.{side}", value, most)
        for name in ("size", "max_image_size", "crop_size")
        for side, value in dict(getattr(reader, name, None) or {}).items()
    ]
    found += [(name, getattr(reader, name, None), MAX_PATCHES) for name in PATCHES]
    found += [(name, getattr(processor, name, None), MAX_IMAGE_TOKENS) for name in LENGTHS]
    for name, value, limit in found:
        if value is not None and (type(value) is not int or not 1 <= value <= limit):
            raise UserError(
                f"{folder}: {name} of its image processor is {value!r}; it is a number from 1 to {limit:,}; copy "
                "processor_config.json and preprocessor_config.json from where the weights come from"
            )
