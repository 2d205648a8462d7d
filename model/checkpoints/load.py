"""ONE door: `load_model(path)` recognises every checkpoint layout and returns a model with its processor.

A LLaVA alone (a base to train from) gets SAM from `sam` and a fresh projection; a folder that
has them keeps them. What a training run left is put on top of its base, adapters merged. Loading is strict: a
weight that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from model.checkpoints.assemble import assemble, check_agreement
from model.checkpoints.layouts import hf_llava, llava_v1, ours, released
from model.checkpoints.layouts.adapter import is_adapter
from model.checkpoints.layouts.base import ReadOptions, named_dtype
from model.checkpoints.layouts.sam import is_sam_file
from model.checkpoints.layouts.training import (
    apply_training_weights,
    describe,
    read_run_settings,
    read_training_weights,
)
from model.checkpoints.quantize import quantization_config
from model.errors import UserError
from model.files import read_json
from model.folders import local_folder
from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat

logger = logging.getLogger(__name__)

LAYOUTS: dict[str, ModuleType] = {
    "LaSagnA folder": ours,
    "Hugging Face LLaVA": hf_llava,
    "released LaSagnA or LISA": released,
    "original LLaVA": llava_v1,
}
# model_type of folders that people pass by mistake, and what to do with them.
WRONG_KINDS = {
    "clip": "a CLIP; pass it as --vision_tower",
    "clip_vision_model": "a CLIP tower; pass it as --vision_tower",
    "llama": "a language model that sees nothing; pass a LLaVA that was made of it",
    "sam": "a SAM in Hugging Face's layout; pass a .pth file of segment_anything as --vision_pretrained",
}


def load_model(
    path: str | Path,
    *,
    vision_tower: str | None = None,
    sam: str | None = None,
    base: str | Path | None = None,
    lora_alpha: float | None = None,
    tag: str | None = None,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    device: str | torch.device | None = None,
    attn_implementation: str = "auto",
    format: SequenceFormat | str | None = None,
    prompt: str | None = None,
    seed: int = 0,
) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """Loads a model in evaluation mode.

    Args:
        path: a whole model in any known layout, or the name of a repository on the Hugging Face hub; or what a
            training run left: its folder, a DeepSpeed checkpoint, output of zero_to_fp32.py, a PEFT folder.
        vision_tower: CLIP folder, for layouts that have no CLIP inside.
        sam: SAM file, for layouts that have no SAM inside.
        base, lora_alpha, tag: of a training run: the model that it started from and LoRA's alpha, where its
            settings do not say so; which save of it, if not the newest.
        dtype: of the weights. If not given, as stored; what a training run left gets the run's precision.
        quantization: "8bit" or "4bit" for the language model's layers; needs a GPU and bitsandbytes.
        device: where the model goes; the CPU if not given, the first GPU if quantised.
        attn_implementation: of the language model; "auto" is SDPA, see `choose_attention`.
        format: sequence format (or its name) where the folder does not say; "paper" if nobody does.
        prompt: prompt template where the folder does not say.
        seed: for weights that are new: rows of added tokens and, if the folder has none, the projection.

    Raises:
        FileNotFoundError, ValueError: something is absent or does not fit; the message names the flag.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        place = local_folder(path, flag="--version")
    layout = recognise(place, tag)
    dtype_there = dtype or stored_dtype(place, layout)
    attn_implementation = choose_attention(attn_implementation, dtype_there)
    told: dict[str, Any] = {"sam": sam, "format": format, "prompt": prompt, "seed": seed}
    if layout not in LAYOUTS:
        if quantization:
            raise UserError(f"{place} is not a merged model; merge it before --load_in_{quantization}")
        told |= {
            "vision_tower": vision_tower,
            "dtype": dtype_there,
            "attn_implementation": attn_implementation,
        }
        model = load_trained(place, layout, base=base, lora_alpha=lora_alpha, tag=tag, **told)
    else:
        options = ReadOptions(
            vision_tower=vision_tower,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization=quantization_config(quantization, dtype_there) if quantization else None,
            device=torch.device(device or "cuda") if quantization else None,
        )
        model = load_whole(place, layout, options, **told)
    check_agreement(model)
    if quantization:  # the quantised part is there already, and may not move
        device = options.device
        model.sam.to(device)
        model.seg_projector.to(device)
    elif device is not None:
        model.to(device)
    return model, model.processor


def load_whole(
    folder: Path,
    layout: str,
    options: ReadOptions,
    *,
    sam: str | None,
    format: SequenceFormat | str | None,
    prompt: str | None,
    seed: int,
) -> LasagnaForConditionalGeneration:
    """A folder of one of `LAYOUTS`; arguments as in `load_model`."""
    logger.info("%s: %s; attention: %s", folder, layout, options.attn_implementation)
    read = LAYOUTS[layout].read(folder, options)
    if isinstance(read, LasagnaForConditionalGeneration):
        logger.info("projection and mask decoder: trained, from the folder")
        return with_settings(read, format, prompt)
    return assemble(read, sam=sam, format=format, prompt=prompt, seed=seed)


def load_trained(
    path: Path,
    kind: str,
    *,
    base: str | Path | None,
    lora_alpha: float | None,
    tag: str | None,
    vision_tower: str | None,
    sam: str | None,
    format: SequenceFormat | str | None,
    prompt: str | None,
    **told: Any,
) -> LasagnaForConditionalGeneration:
    """Weights of a training run on top of the model that it started from; arguments as in `load_model`.

    Raises:
        ValueError: nothing says which model that was.
    """
    settings = read_run_settings(path)
    base = base or settings.place_of("version")
    if not base:
        raise UserError(
            f"{path}: {kind}, but nothing says which model it started from; pass its base as --version and "
            "this as --weight to merge_lora_weights_and_save_hf_model.py"
        )
    logger.info("%s: %s, on top of %s", path, kind, base)
    stored = settings.config.get("sequence_format")
    format = format or (SequenceFormat.from_dict(stored) if stored else None)
    if format is None:
        weights = read_training_weights(path, tag)
        format = released.training_format(weights, local_folder(base, flag="--version"))
    model, _ = load_model(
        base,
        vision_tower=vision_tower or settings.place_of("vision_tower"),
        sam=sam or settings.place_of("vision_pretrained"),
        format=format,
        prompt=prompt or settings.config.get("prompt"),
        **told,
    )
    model.config.num_all_classes = settings.num_all_classes or model.config.num_all_classes
    return apply_training_weights(model, path, lora_alpha=lora_alpha, tag=tag)


def stored_dtype(place: Path, layout: str) -> torch.dtype | None:
    """The number format of a folder's weights, or of the run that left them; None where nothing says it."""
    if layout not in LAYOUTS:
        return read_run_settings(place).dtype
    config = read_json(place / "config.json")
    return named_dtype(config.get("dtype") or config.get("torch_dtype"))


def recognise(path: Path, tag: str | None = None) -> str:
    """What `path` is: a name in `LAYOUTS`, or a description of the trained weights that it holds.

    Raises:
        FileNotFoundError: a folder in which nothing says what it is.
        ValueError: something that is no whole model; the message says where it belongs.
    """
    config = read_json(path / "config.json") if path.is_dir() else {}
    if path.is_file() and is_sam_file(path):
        raise UserError(
            f"--version {path} is a SAM; pass it as --vision_pretrained, and a LLaVA as --version"
        )
    # A PEFT folder of LLaVA's authors has the config.json of its base.
    for name, layout in LAYOUTS.items():
        if not is_adapter(path) and layout.recognises(config):
            return name
    if not config or is_adapter(path):
        kind = describe(path, tag)
        if kind:
            return kind
        raise FileNotFoundError(
            f"{path} has no config.json; pass the folder of a whole model "
            "(of a training run, what merge_lora_weights_and_save_hf_model.py makes of it, or its ckpt_model)"
        )
    kind = config.get("model_type")
    if kind in WRONG_KINDS:
        raise UserError(f"--version {path} is {WRONG_KINDS[kind]}")
    raise UserError(
        f"{path}/config.json has model_type {kind!r} and architectures "
        f"{config.get('architectures')}; known layouts: {', '.join(LAYOUTS)}"
    )


def choose_attention(name: str, dtype: torch.dtype | None) -> str:
    """What computes the language model's attention; "auto" is SDPA.

    SDPA masks within a row, as packed conversations need, runs fused kernels on every device, and was faster than
    flex attention on an H100 (`make gpu`). Flash attention cannot mask within a row: it is taken when it is named.

    Raises:
        UserError: flex attention without a GPU; flash attention that is not installed or cannot run here.
    """
    on_gpu = torch.cuda.is_available()
    if name == "flex_attention" and not on_gpu:
        raise UserError(
            "--attn_implementation flex_attention needs a GPU: on a CPU it cannot train; take sdpa"
        )
    if name == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise UserError(
                f"--attn_implementation {name} is not installed; pip install flash-attn --no-build-isolation, or "
                "take sdpa"
            )
        if not on_gpu or dtype not in (torch.float16, torch.bfloat16):
            raise UserError(f"--attn_implementation {name} needs a GPU and bf16 or fp16; take sdpa")
    return "sdpa" if name == "auto" else name


def with_settings(
    model: LasagnaForConditionalGeneration, format: SequenceFormat | str | None, prompt: str | None
) -> LasagnaForConditionalGeneration:
    """A folder of ours, which says itself how it is spoken to; training may go on with other strategies.

    Raises:
        ValueError: another format or prompt is asked for than the model was trained with.
    """
    stored = model.config.format
    name = format if isinstance(format, str) or format is None else format.name
    if name not in (None, stored.name):
        raise UserError(
            f"this model was trained with --format {stored.name}; it cannot take {name!r}: pass --format "
            f"{stored.name}"
        )
    if prompt not in (None, model.config.prompt):
        raise UserError(
            f"this model was trained with prompt {model.config.prompt!r}; it cannot take {prompt!r}: pass "
            f"--conv_type {model.config.prompt}"
        )
    if isinstance(format, SequenceFormat):
        model.config.sequence_format = format.to_dict()
        model.processor = replace(model.processor, format=format)
    return model
