"""LoRA: the target layers, the other trainable parameters, and merging adapters into the weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from model.backbones.token_rows import TokenRows
from model.errors import UserError

# A pattern over full names: bare "q_proj" would also adapt CLIP's attention.
TARGET_PATTERN = r".*language_model.*\.(q_proj|v_proj)"

# Trainable parameters besides those of the mask decoder, which lists its own; the rest is frozen.
TRAINABLE_PATTERN = r"vlm\..*\.lora_[AB]\..*|seg_projector\..*|spatial_prompt\..*"
EMBEDDINGS_PATTERN = r"vlm\..*\.embed_tokens\..*|vlm\.(.*\.)?lm_head\..*"
TOKEN_ROWS_PATTERN = r"token_rows\..*"


def add_lora(
    vlm: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    target_pattern: str = TARGET_PATTERN,
) -> PreTrainedModel | PeftModel:
    """Adds adapters to the layers of `vlm` whose name matches; with rank 0 it is returned unchanged.

    The adapters have the dtype of the layers that they adapt.

    Raises:
        ValueError: the rank is negative, or no layer matches.
    """
    if rank < 0:
        raise UserError(f"the LoRA rank must be 0 (no adapters) or more, got {rank}")
    if rank == 0:
        return vlm
    if not any(re.fullmatch(target_pattern, name) for name, _ in vlm.named_modules()):
        raise UserError(f"no layer of the model matches the LoRA pattern {target_pattern!r}")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_pattern, bias="none"
    )
    with warnings.catch_warnings():
        # PEFT asks for an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(vlm, config, autocast_adapter_dtype=False)


def adapt(
    model: PreTrainedModel,
    layers: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    embeddings: str = "auto",
    new_ids: Sequence[int] = (),
) -> list[str]:
    """Prepares a LaSagnA model for training; returns the names of the parameters that train.

    Args:
        layers: names of the language model's layers that get adapters.
        rank, alpha, dropout: as for `add_lora`.
        embeddings: what trains of embedding and head: "all", "new" (the rows of `new_ids`), or "auto": all of a
            LLaVA, as in the paper, and the new rows of other bases, which keep what they can say.
        new_ids: tokens that the format added to the base's vocabulary.
    """
    model.vlm = add_lora(model.vlm, rank, alpha, dropout, model.backbone.lora_pattern(layers))
    if embeddings == "new" or (embeddings == "auto" and not model.config.is_llava):
        train_token_rows(model, new_ids)
    return mark_trainable(model)


def trainable_pattern(model: PreTrainedModel) -> re.Pattern[str]:
    """Matches the full names of the parameters of a LaSagnA model that train."""
    words = EMBEDDINGS_PATTERN if model.token_rows is None else TOKEN_ROWS_PATTERN
    in_decoder = model.sam.trainable_pattern
    if model.spatial_prompt is not None:
        in_decoder += f"|{model.sam.mask_prompt_pattern}"
    return re.compile(rf"{TRAINABLE_PATTERN}|{words}|sam\.(?:{in_decoder})")


def train_token_rows(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Lets a LaSagnA model train the rows of these tokens in place of its embedding and head; see `TokenRows`."""
    scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
    model.token_rows = TokenRows(ids, *embedding_and_head(model), scale)


def embedding_and_head(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Both matrices (vocabulary, hidden_dim) of a LaSagnA model; no head where they are tied."""
    is_tied = model.base_vlm.config.tie_word_embeddings
    head = None if is_tied else model.get_output_embeddings().weight
    return model.get_input_embeddings().weight, head


def mark_trainable(model: PreTrainedModel) -> list[str]:
    """Sets `requires_grad` on every parameter of a LaSagnA model; returns the names of those that train."""
    pattern, names = trainable_pattern(model), []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(pattern.fullmatch(name) is not None)
        if parameter.requires_grad:
            names.append(name)
    return names


@torch.no_grad()
def add_delta(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """The weight (out, in) with the adapter B (out, rank) A (rank, in) added, in the weight's dtype.

    The sum is taken in float32 and rounded once, whatever the dtype of the weight. The adapter is rounded to that
    dtype first, as training saw it.
    """
    lora_a, lora_b = (part.to(weight.dtype).float() for part in (lora_a, lora_b))
    return (weight.float() + scaling * (lora_b @ lora_a)).to(weight.dtype)


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Merges adapters and token rows of a LaSagnA model into its weights; in place, returns the model."""
    if model.token_rows is not None:
        model.token_rows.write(*embedding_and_head(model))
        model.token_rows = None
    if not isinstance(model.vlm, PeftModel):
        return model
    for layer in model.vlm.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            for name in layer.active_adapters:
                lora_a, lora_b = layer.lora_A[name].weight, layer.lora_B[name].weight
                weight.copy_(add_delta(weight, lora_a, lora_b, layer.scaling[name]))
    model.vlm = model.vlm.unload()
    return model
