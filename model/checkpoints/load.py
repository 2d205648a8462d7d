"""Single entry point for checkpoints: `load_model(path)` reads every known layout, returns a model and its processor.

A LLaVA alone, from which training starts, gets SAM from `sam` and a new projection; a folder that has them keeps
them. The weights of a training run are put on top of the model that it started from, adapters merged. Loading is
strict: a weight that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoints.agreement import check_agreement
from model.checkpoints.assemble import assemble
from model.checkpoints.checkpoint import TrainedWeights, WholeModel, open_checkpoint
from model.checkpoints.finite import require_finite
from model.checkpoints.layouts import released
from model.checkpoints.layouts.base import ReadOptions
from model.checkpoints.layouts.mask_decoder import check_head
from model.checkpoints.quantize import quantization_config
from model.checkpoints.trained import apply_trained, mask_head_of, take_settings
from model.encoder_precision import set_encoder_precision
from model.errors import UserError
from model.folders import local_folder
from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat

logger = logging.getLogger(__name__)


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
    min_image_tokens: int | None = None,
    max_image_tokens: int | None = None,
    mask_head: str | None = None,
    encoder_precision: str = "",
) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """Loads a model in evaluation mode.

    Args:
        path: a whole model in any known layout, or the name of a repository on the Hugging Face hub; or what a
            training run left: its folder, a DeepSpeed checkpoint, output of zero_to_fp32.py, a PEFT folder.
        vision_tower: CLIP folder, for layouts that have no CLIP inside.
        sam: SAM file, for layouts that have no SAM inside.
        base, lora_alpha, tag: of a training run: the model that it started from and LoRA's alpha, where its
            settings do not say so; which save of it, if not the newest.
        dtype: of the weights. If not given, as stored; for a training run, the run's precision.
        quantization: "8bit" or "4bit" for the language model's layers; needs a GPU and bitsandbytes.
        device: where the model goes; the CPU if not given, the first GPU if quantised.
        attn_implementation: of the language model; "auto" is SDPA, see `choose_attention`.
        format: sequence format (or its name) where the folder does not say; "paper" if nobody does.
        prompt: prompt template where the folder does not say.
        seed: for weights that are new: rows of added tokens and, if the folder has none, the projection.
        min_image_tokens, max_image_tokens: limits of the tokens of one image, where the base has them as a setting;
            stored with the model.
        mask_head: "sam" or "concept", where `sam` has both or the folder's must be one of them; see
            docs/mask_decoders.md.
        encoder_precision: "bf16" for the frozen image encoders; see model/encoder_precision.py.

    Raises:
        FileNotFoundError, ValueError: something is absent or does not fit; the message names the flag.
    """
    checkpoint = open_checkpoint(path, tag)
    dtype_there = dtype or checkpoint.dtype
    attn_implementation = choose_attention(attn_implementation, dtype_there)
    if isinstance(checkpoint, TrainedWeights):
        if quantization:
            raise UserError(
                f"{checkpoint.path} is not a merged model; merge it before --load_in_{quantization}"
            )
        options = ReadOptions(vision_tower=vision_tower, dtype=dtype_there)
        model = load_trained(
            checkpoint,
            options,
            base=base,
            lora_alpha=lora_alpha,
            sam=sam,
            format=format,
            prompt=prompt,
            seed=seed,
            mask_head=mask_head,
            attn_implementation=attn_implementation,
        )
    else:
        options = ReadOptions(
            vision_tower=vision_tower,
            dtype=dtype,
            quantization=quantization_config(quantization, dtype_there) if quantization else None,
            device=torch.device(device or "cuda") if quantization else None,
        )
        model = load_whole(
            checkpoint, options, sam=sam, format=format, prompt=prompt, seed=seed, mask_head=mask_head
        )
        attend_with(model, attn_implementation)
    check_agreement(model)
    model.processor.images.limit(min_image_tokens, max_image_tokens)
    if quantization:  # the quantised part is on its device already, and must not move
        device = options.device
        model.sam.to(device)
        model.seg_projector.to(device)
    elif device is not None:
        model.to(device)
    set_encoder_precision(model, encoder_precision)
    return model, model.processor


def load_whole(
    checkpoint: WholeModel,
    options: ReadOptions,
    *,
    sam: str | None,
    format: SequenceFormat | str | None,
    prompt: str | None,
    seed: int,
    mask_head: str | None,
) -> LasagnaForConditionalGeneration:
    """A whole model; arguments as in `load_model`."""
    logger.info("%s: %s", checkpoint.path, checkpoint.kind)
    read = checkpoint.layout.read(checkpoint.path, options)
    if isinstance(read, LasagnaForConditionalGeneration):
        require_finite(read.state_dict(), source=str(checkpoint.path))
        check_head(read.config.sam_settings, mask_head, str(checkpoint.path))
        logger.info("projection and mask decoder: trained, from the folder")
        return with_settings(read, format, prompt)
    model = assemble(read, sam=sam, format=format, prompt=prompt, seed=seed, mask_head=mask_head)
    given = {"--vision_tower": options.vision_tower, "--vision_pretrained": sam}
    parts = [f"{flag} {path}" for flag, path in given.items() if path]
    require_finite(model.state_dict(), source=" with ".join([str(checkpoint.path), *parts]))
    return model


def load_trained(
    checkpoint: TrainedWeights,
    options: ReadOptions,
    *,
    base: str | Path | None,
    lora_alpha: float | None,
    sam: str | None,
    format: SequenceFormat | str | None,
    prompt: str | None,
    seed: int,
    mask_head: str | None,
    attn_implementation: str,
) -> LasagnaForConditionalGeneration:
    """Weights of a training run on top of the model that it started from; arguments as in `load_model`.

    Raises:
        ValueError: nothing says which model that was.
    """
    settings = checkpoint.settings
    base = base or settings.place_of("version")
    if not base:
        raise UserError(
            f"{checkpoint.path}: {checkpoint.kind}, but nothing says which model it started from; pass its base as "
            "--version and this as --weight to merge_lora_weights_and_save_hf_model.py"
        )
    logger.info("%s: %s, on top of %s", checkpoint.path, checkpoint.kind, base)
    format = format or settings.format
    if format is None:
        format = released.training_format(checkpoint.weights, local_folder(base, flag="--version"))
    model, _ = load_model(
        base,
        vision_tower=options.vision_tower or settings.place_of("vision_tower"),
        sam=sam or settings.place_of("vision_pretrained"),
        dtype=options.dtype,
        attn_implementation=attn_implementation,
        format=format,
        prompt=prompt or settings.prompt,
        seed=seed,
        mask_head=mask_head or mask_head_of(checkpoint),
        **settings.image_tokens,
    )
    take_settings(model, settings)
    model = apply_trained(model, checkpoint, lora_alpha=lora_alpha)
    logger.info("projection and mask decoder: trained, from %s", checkpoint.path)
    return model


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


def attend_with(model: LasagnaForConditionalGeneration, name: str) -> None:
    """Has the language model compute attention with what `choose_attention` returned; the encoders keep theirs.

    Raises:
        UserError: it does not take the masks of this model.
    """
    if name not in model.backbone.attentions:
        raise UserError(
            f"--attn_implementation {name} does not take the masks of a {model.config.vlm_config.model_type}; "
            f"known: {', '.join(model.backbone.attentions)}"
        )
    model.backbone.attend_with(name)
    logger.info("attention: %s", name)


def with_settings(
    model: LasagnaForConditionalGeneration, format: SequenceFormat | str | None, prompt: str | None
) -> LasagnaForConditionalGeneration:
    """Checks a model of ours, whose folder states format and prompt; training may go on with other strategies.

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
