"""The released recipe's training step, step by step, on the weights of a model of ours.

As in LISA's and LaSagnA's published code: a row for each conversation, padded; CLIP on the image once for each row;
the logits of all positions in float32; the projection of all positions; SAM's encoder, eager, on one image at a time;
the mask decoder image by image, its masks upsampled by `postprocess_masks`; dense float masks as ground truth. What
belongs to the libraries is the same on both sides: torch, the language model's attention, the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from model.decoders.sam import build_sam
from model.inputs import ModelInputs, Size
from model.lasagna import LasagnaForConditionalGeneration
from model.text.encoded import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class PlainBatch:
    """B images with N conversations as the released loader passes them on."""

    images: Tensor  # (B, 3, side, side) float32 for SAM: normalised, padded
    clip_images: Tensor  # (B, 3, S, S) float32, normalised
    input_ids: Tensor  # (N, T), padded at the right
    attention_mask: Tensor  # (N, T)
    labels: Tensor  # (N, T)
    image_of_row: list[int]
    masks: list[Tensor]  # for each image (n_i, height, width) float32
    resized_sizes: list[Size]


class PlainModel:
    """The weights of `model`, used the plain way. They are shared: gradients accumulate in the model's parameters."""

    def __init__(self, model: LasagnaForConditionalGeneration) -> None:
        self.model = model
        self.sam = plain_sam(model)

    def losses(self, batch: PlainBatch, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted terms of the loss: `cross_entropy`, `mask_bce`, `dice`, and their sum `total`.

        Args:
            batch: images with conversations and masks.
            embeddings: (B, prompt_embed_dim, grid, grid) of SAM's encoder, computed from the images if not given.
        """
        if embeddings is None:
            embeddings = self.encode(batch.images)
        states = self.states(batch)
        terms = {"cross_entropy": self.cross_entropy(states, batch.labels)}
        terms |= self.mask_terms(states, batch, embeddings)
        terms = {name: self.model.config.loss_weights[name] * value for name, value in terms.items()}
        return {**terms, "total": sum(terms.values())}

    def language_loss(self, batch: PlainBatch) -> Tensor:
        """CLIP and the language model alone."""
        return self.cross_entropy(self.states(batch), batch.labels)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """SAM's encoder, one image at a time."""
        images = images.to(self.sam.image_encoder.pos_embed.dtype)
        return torch.cat([self.sam.image_encoder(image.unsqueeze(0)) for image in images])

    def states(self, batch: PlainBatch) -> Tensor:
        """(N, T, hidden_dim): every row has its own copy of the image."""
        llava = self.model.base_vlm.model
        features = llava.multi_modal_projector(self.clip_patches(batch.clip_images[batch.image_of_row]))
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        is_image = (batch.input_ids == self.model.config.image_token_id).unsqueeze(-1)
        return llava.language_model(
            inputs_embeds=embeddings.masked_scatter(is_image, features),
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).last_hidden_state

    @torch.no_grad()
    def clip_patches(self, pixels: Tensor) -> Tensor:
        """(N, num_patches, clip_dim): hidden states of LLaVA's feature layer, without the class token."""
        config = self.model.config.vlm_config
        tower = self.model.base_vlm.model.vision_tower
        return tower(pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer][:, 1:]

    def cross_entropy(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean over the learned tokens, from the logits of all positions."""
        # Only our vocabulary has `<image>`: its logit is cut off, as in our loss.
        logits = self.model.base_vlm.lm_head(states)[..., : self.model.config.image_token_id].float()
        shifted = logits[:, :-1].contiguous()
        return F.cross_entropy(shifted.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)

    def mask_terms(self, states: Tensor, batch: PlainBatch, embeddings: Tensor) -> dict[str, Tensor]:
        """Means over all masks of the two mask terms."""
        prompts = self.model.seg_projector(states)  # for every position
        before_seg = batch.input_ids[:, 1:] == self.model.config.seg_token_id
        bce, dice, num_masks = states.new_zeros(()), states.new_zeros(()), 0
        for index, truth in enumerate(batch.masks):
            rows = [row for row, owner in enumerate(batch.image_of_row) if owner == index]
            chosen = prompts[rows, :-1][before_seg[rows]]  # (n_i, prompt_embed_dim)
            if not len(chosen):
                continue
            logits = self.draw(chosen, embeddings[index], batch.resized_sizes[index], truth.shape[-2:])
            bce = bce + plain_bce(logits, truth) * len(truth)
            dice = dice + plain_dice(logits, truth) * len(truth)
            num_masks += len(truth)
        return {"mask_bce": bce / max(num_masks, 1), "dice": dice / max(num_masks, 1)}

    def draw(self, prompts: Tensor, embedding: Tensor, resized: Size, original: Size) -> Tensor:
        """(n, height, width) mask logits of one image."""
        _, dense = self.sam.prompt_encoder(points=None, boxes=None, masks=None)
        low_res, _ = self.sam.mask_decoder(
            image_embeddings=embedding.unsqueeze(0),
            # Its own `get_dense_pe` fails in bfloat16; in float32 the two are the same.
            image_pe=self.model.sam.dense_positions(dense),
            sparse_prompt_embeddings=prompts.unsqueeze(1),
            dense_prompt_embeddings=dense.expand(len(prompts), -1, -1, -1),
            multimask_output=False,
        )
        return self.sam.postprocess_masks(low_res.float(), tuple(resized), tuple(original)).squeeze(1)


def plain_bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over the masks of the mean over their pixels."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1).mean(1).mean()


def plain_dice(logits: Tensor, truth: Tensor, scale: float = 1000, eps: float = 1e-6) -> Tensor:
    """LISA's dice loss, mean over the masks."""
    probabilities, truth = logits.sigmoid().flatten(1), truth.flatten(1)
    intersection = 2 * (probabilities / scale * truth).sum(-1)
    total = (probabilities / scale).sum(-1) + (truth / scale).sum(-1)
    return (1 - (intersection + eps) / (total + eps)).mean()


def plain_sam(model: LasagnaForConditionalGeneration) -> Sam:
    """segment_anything's own modules, whose parameters are those of the model."""
    sam = build_sam(model.config.sam_settings)
    share_weights(sam, model.sam)
    assert all(type(block.attn) is Attention for block in sam.image_encoder.blocks), (
        "not the package's attention"
    )
    return sam


def share_weights(target: nn.Module, source: nn.Module) -> None:
    """Makes `target` use the parameters and persistent buffers of `source`, matched by name."""
    stored = source.state_dict(keep_vars=True)
    names = target.state_dict().keys()
    assert set(names) == set(stored), sorted(set(names) ^ set(stored))
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(target.get_submodule(owner), attribute, stored[name])


def plain_batch(model: LasagnaForConditionalGeneration, inputs: ModelInputs) -> PlainBatch:
    """Our collated, unpacked inputs in the form of the released loader."""
    assert inputs.segment_ids is None, "the reference does not pack"
    settings, config = model.config.sam_settings, model.config
    return PlainBatch(
        images=sam_pixels(
            inputs.sam_images,
            inputs.resized_sizes,
            settings.image_size,
            settings.pixel_mean,
            settings.pixel_std,
        ),
        clip_images=normalized(
            inputs.vlm_images["clip_images"].float() / 255, config.clip_mean, config.clip_std
        ),
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        labels=inputs.labels,
        image_of_row=list(inputs.image_of_row),
        masks=[mask.float() for mask in inputs.gt_masks],
        resized_sizes=list(inputs.resized_sizes),
    )


def sam_pixels(
    images: Tensor, sizes: Sequence[Size], side: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(B, 3, side, side) float32: each image normalised, then padded with zeros."""
    whole = torch.zeros(len(images), 3, side, side, device=images.device)
    for place, image, (height, width) in zip(whole, images, sizes, strict=True):
        place[:, :height, :width] = normalized(image[:, :height, :width].float(), mean, std)
    return whole


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels - mean) / std
