"""Applies the weights of a training run to the model that it started from: names, adapters, all other weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoints.checkpoint import TrainedWeights
from model.checkpoints.layouts import released
from model.checkpoints.run_settings import RunSettings
from model.choices import CONCEPT_HEAD, SAM_HEAD
from model.decoders import concept_settings
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, merge, train_token_rows, trainable_pattern
from model.strict_loading import check_fit

logger = logging.getLogger(__name__)

DEFAULT_ALPHA = 16.0
LORA_NAME = re.compile(r"vlm\.base_model\.model\.(?P<layer>.+)\.lora_A\.default\.weight")


@dataclass(frozen=True)
class Lora:
    """Adapters of a training run: their rank, their alpha, and the layers of `vlm` that they are on."""

    rank: int
    alpha: float
    layers: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Factor of the product B A."""
        return self.alpha / self.rank


def named_as_ours(trained: TrainedWeights, model: LasagnaForConditionalGeneration) -> dict[str, Tensor]:
    """The weights under the names that they have in our training, also those of the released training code.

    Args:
        model: the base, which completes vocabularies without `<image>`.
    """
    weights = trained.weights
    return released.training_names(weights, model) if released.is_training_state(weights) else weights


def lora_of(
    weights: Mapping[str, Tensor], trained: TrainedWeights, alpha: float | None = None
) -> Lora | None:
    """The adapters among weights named as ours; None if there are none.

    Args:
        alpha: wins over what the run's settings or the PEFT folder say; with neither, 16, training's default.

    Raises:
        ValueError: adapters are of several ranks.
    """
    ranks = {found["layer"]: len(weights[name]) for name in weights if (found := LORA_NAME.fullmatch(name))}
    if not ranks:
        return None
    if len(set(ranks.values())) > 1:
        raise UserError(f"{trained.path} has adapters of several ranks {sorted(set(ranks.values()))}")
    alpha = alpha or trained.settings.lora_alpha
    if alpha is None:
        alpha = DEFAULT_ALPHA
        logger.warning(
            "%s does not come with the run's settings; LoRA alpha is taken to be %g", trained.path, alpha
        )
    return Lora(rank=next(iter(ranks.values())), alpha=float(alpha), layers=tuple(ranks))


def mask_head_of(trained: TrainedWeights) -> str | None:
    """The mask head that a run trained, by its settings or, without them, its weights; None where neither tells."""
    if (kind := trained.settings.sam_kind) is not None:
        return CONCEPT_HEAD if kind == concept_settings.KIND else SAM_HEAD
    return CONCEPT_HEAD if any(name.startswith("sam.detr_decoder.") for name in trained.weights) else None


def take_settings(model: LasagnaForConditionalGeneration, settings: RunSettings) -> None:
    """Gives the model that a run started from what the run's settings add to it; its weights come afterwards."""
    model.config.num_all_classes = settings.num_all_classes or model.config.num_all_classes
    if settings.image_aspect_ratio:
        model.set_image_aspect_ratio(settings.image_aspect_ratio)
    if settings.spatial_prompt:
        model.add_spatial_prompt(settings.num_latent_prompts)


def apply_trained(
    model: LasagnaForConditionalGeneration, trained: TrainedWeights, *, lora_alpha: float | None = None
) -> LasagnaForConditionalGeneration:
    """Applies trained weights to the model that the run started from, in place, adapters merged.

    Args:
        model: the base, as `load_model` gives it, with the same format as in training.
        lora_alpha: see `lora_of`.

    Raises:
        ValueError: a weight is missing, left over or of another shape.
    """
    weights = named_as_ours(trained, model)
    new_ids = model.processor.new_token_ids
    copy_trained(model, weights, lora_of(weights, trained, lora_alpha), trained, new_ids)
    return merge(model).eval()


@torch.no_grad()
def copy_trained(
    model: LasagnaForConditionalGeneration,
    weights: Mapping[str, Tensor],
    lora: Lora | None,
    trained: TrainedWeights,
    new_ids: Sequence[int],
) -> None:
    """Adds the adapters to the model and copies weights by name; frozen ones may be absent, trained ones may not.

    On the meta device nothing is copied, and names and shapes are checked all the same.

    Args:
        weights, lora: of `trained`, named as ours.
        new_ids: tokens that the format added to the base's vocabulary, whose rows may be stored alone.
    """
    if any(name.startswith("token_rows.") for name in weights):
        train_token_rows(model, new_ids)
    if lora is not None:
        modules = {name for name, _ in model.vlm.named_modules()}
        # Layers that the base does not have are left over, and stand in the table of what does not fit.
        if known := [layer for layer in lora.layers if layer in modules]:
            pattern = "|".join(re.escape(layer) for layer in known)
            model.vlm = add_lora(model.vlm, lora.rank, lora.alpha, 0.0, pattern)
    own = model.state_dict()
    trainable = trainable_pattern(model)
    # Not the state dict, which names a tied matrix twice.
    required = {name for name, _ in model.named_parameters() if trainable.fullmatch(name)}
    if trained.holds_adapters_only:
        required = {name for name in required if ".lora_" in name}
    check_fit(
        own,
        weights,
        required=required,
        source=str(trained.path),
        hint="Is --version the model that this run started from, and is the format the run's?",
    )
    for name, value in weights.items():
        own[name].copy_(value)
