"""Loads the language model's layers in 8 or 4 bit through bitsandbytes; everything else stays in 16 bit."""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from model.errors import UserError

CHOICES = ("8bit", "4bit")
# What is not quantised, as patterns from the start of a name or as its end: masks are sensitive to SAM and the
# projection, the tower and LLaVA's projector are small, and lm_head gets rows for new tokens.
KEPT = [
    *(r".*vision_tower", r".*vision_model", r".*visual", r".*multi_modal_projector", r".*connector"),
    *(r".*lm_head", "sam", "seg_projector"),
]


def quantization_config(name: str, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """The settings of "8bit" or "4bit" (NF4), computed in `dtype`.

    Raises:
        ValueError: an unknown name, a dtype that is not 16 bit, or no GPU or bitsandbytes here.
    """
    if name not in CHOICES:
        raise UserError(f"unknown quantization {name!r}; known: {', '.join(CHOICES)}")
    flag = f"--load_in_{name}"
    if dtype not in (torch.float16, torch.bfloat16):
        raise UserError(f"{flag} computes in 16 bit; pass --precision bf16 or fp16 with it")
    if not torch.cuda.is_available():
        raise UserError(f"{flag} needs a GPU, and there is none here; leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{flag} needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=KEPT,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )
