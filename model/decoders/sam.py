"""SAM as the mask decoder of the model: `encode` images once, `decode` one mask for each prompt embedding.

The modules are those of the `segment_anything` package, the encoder's blocks and the mask decoder in faster
versions with the same weights (sam_blocks.py, sam_mask_decoder.py). This file adds: sizes inferred from the weights,
batches of images of different sizes, masks of different images in one call of the mask decoder, bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.func import functional_call

from model.decoders.base import BatchedDecoder, MaskPrompts
from model.decoders.sam_blocks import use_fused_blocks
from model.decoders.sam_mask_decoder import FusedMaskDecoder
from model.decoders.transform import LONGEST_SIDE
from model.errors import UserError
from model.inputs import Levels, Size


@dataclass(frozen=True, kw_only=True)
class SamSettings:
    """Hyperparameters of a SAM. Defaults are ViT-H's; `sam_settings_from_state_dict` infers others from weights."""

    image_size: int = 1024
    patch_size: int = 16
    encoder_dim: int = 1280
    encoder_depth: int = 32
    encoder_num_heads: int = 16
    encoder_mlp_dim: int = 5120
    encoder_global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    encoder_window_size: int = 14
    prompt_embed_dim: int = 256
    mask_in_channels: int = 16
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    decoder_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_dim: int = 256
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        # JSON turns tuples into lists.
        for name in ("encoder_global_blocks", "pixel_mean", "pixel_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.image_size % self.patch_size:
            raise UserError(
                f"SAM's image_size {self.image_size} is not a multiple of its patch_size {self.patch_size}"
            )

    @property
    def kind(self) -> str:
        return "sam"

    @property
    def title(self) -> str:
        return "SAM"

    @property
    def resize(self) -> str:
        return LONGEST_SIDE

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of the image embedding, in patches."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def mask_side(self) -> int:
        return 4 * self.grid_size[0]

    @property
    def embedding_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return ((self.prompt_embed_dim, *self.grid_size),)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # without a kind: folders of before there were several


def build_sam(settings: SamSettings) -> Sam:
    """Builds segment_anything's `Sam` with these settings and random weights."""
    encoder = ImageEncoderViT(
        depth=settings.encoder_depth,
        embed_dim=settings.encoder_dim,
        img_size=settings.image_size,
        mlp_ratio=settings.encoder_mlp_dim / settings.encoder_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=settings.encoder_num_heads,
        patch_size=settings.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=settings.encoder_global_blocks,
        window_size=settings.encoder_window_size,
        out_chans=settings.prompt_embed_dim,
    )
    prompt_encoder = PromptEncoder(
        embed_dim=settings.prompt_embed_dim,
        image_embedding_size=settings.grid_size,
        input_image_size=(settings.image_size,) * 2,
        mask_in_chans=settings.mask_in_channels,
    )
    transformer = TwoWayTransformer(
        depth=settings.decoder_depth,
        embedding_dim=settings.prompt_embed_dim,
        mlp_dim=settings.decoder_mlp_dim,
        num_heads=settings.decoder_num_heads,
        attention_downsample_rate=settings.decoder_downsample_rate,
    )
    decoder = MaskDecoder(
        num_multimask_outputs=settings.num_multimask_outputs,
        transformer=transformer,
        transformer_dim=settings.prompt_embed_dim,
        iou_head_depth=settings.iou_head_depth,
        iou_head_hidden_dim=settings.iou_head_dim,
    )
    return Sam(encoder, prompt_encoder, decoder, list(settings.pixel_mean), list(settings.pixel_std))


def sam_settings_from_state_dict(weights: Mapping[str, Tensor]) -> SamSettings:
    """Infers the settings of a SAM from its weights (ViT-H, L, B, or any other made of the same modules).

    The mask decoder's number of heads cannot be inferred from the weights; it is 8, as in every published SAM.

    Raises:
        ValueError: the weights are not those of a SAM of `segment_anything`.
    """
    needed = (
        "image_encoder.pos_embed",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.mask_tokens.weight",
    )
    absent = [name for name in needed if name not in weights]
    if absent:
        raise UserError(
            f"not a SAM checkpoint: it has no {', '.join(absent)}; pass one of sam_vit_{{h,l,b}}*.pth "
            "or sam2*_hiera_*.pt"
        )

    def size(name: str, dim: int = 0) -> int:
        return weights[name].shape[dim]

    def count(pattern: str) -> int:
        return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))

    grid, encoder_dim = size("image_encoder.pos_embed", 1), size("image_encoder.pos_embed", 3)
    patch_size = size("image_encoder.patch_embed.proj.weight", 3)
    depth = count(r"image_encoder\.blocks\.(\d+)\.")
    # A relative position table has 2 * side - 1 rows; side is that of the window, or of the grid in global blocks.
    sides = [(size(f"image_encoder.blocks.{i}.attn.rel_pos_h") + 1) // 2 for i in range(depth)]
    windows = {side for side in sides if side != grid}
    if len(windows) > 1:
        raise UserError(f"SAM's blocks use windows of several sizes {sorted(windows)}; one is supported")
    decoder = "mask_decoder.transformer.layers.0"
    prompt_dim = size("prompt_encoder.no_mask_embed.weight", 1)
    return SamSettings(
        image_size=grid * patch_size,
        patch_size=patch_size,
        encoder_dim=encoder_dim,
        encoder_depth=depth,
        encoder_num_heads=encoder_dim // size("image_encoder.blocks.0.attn.rel_pos_h", 1),
        encoder_mlp_dim=size("image_encoder.blocks.0.mlp.lin1.weight"),
        encoder_global_blocks=tuple(i for i, side in enumerate(sides) if side == grid),
        encoder_window_size=windows.pop() if windows else 0,
        prompt_embed_dim=prompt_dim,
        mask_in_channels=size("prompt_encoder.mask_downscaling.3.weight"),
        decoder_depth=count(r"mask_decoder\.transformer\.layers\.(\d+)\."),
        decoder_mlp_dim=size(f"{decoder}.mlp.lin1.weight"),
        decoder_downsample_rate=prompt_dim // size(f"{decoder}.cross_attn_token_to_image.q_proj.weight"),
        num_multimask_outputs=size("mask_decoder.mask_tokens.weight") - 1,
        iou_head_depth=count(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        iou_head_dim=size("mask_decoder.iou_prediction_head.layers.0.weight"),
    )


class SamSegmenter(BatchedDecoder):
    """The three parts of a SAM, named as in a SAM checkpoint, without the buffers of `Sam`.

    Non-persistent buffers are uninitialized after `from_pretrained`, so pixel mean and std come from the settings.
    """

    # SAM's prediction of a mask's quality is not used: its head would never get a gradient.
    trainable_pattern = r"mask_decoder\.(?!iou_prediction_head\.).*"
    mask_prompt_pattern = r"prompt_encoder\.mask_downscaling\..*"

    def __init__(self, settings: SamSettings) -> None:
        super().__init__()
        sam = build_sam(settings)
        use_fused_blocks(sam.image_encoder)
        self.settings: SamSettings = settings
        self.image_encoder = sam.image_encoder
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = FusedMaskDecoder(sam.mask_decoder)

    @torch.no_grad()
    def encode(self, images: Tensor, resized_sizes: Sequence[Size]) -> Levels:
        """Image embeddings of images resized to SAM's longest side. The encoder is frozen: no gradients.

        Args:
            images: (B, 3, h, w) uint8 RGB, padded at the right and the bottom to the largest of the batch.
            resized_sizes: (height, width) of each image without padding.

        Returns:
            One level (B, prompt_embed_dim, grid, grid) in `embedding_dtype`.
        """
        side = self.settings.image_size
        if max(images.shape[-2:]) > side:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels are larger than SAM's {side}")
        mean, std = (
            torch.tensor(values).to(images.device, non_blocking=True).view(3, 1, 1)
            for values in (self.settings.pixel_mean, self.settings.pixel_std)
        )
        normalized = (images.float() - mean) / std
        # SAM pads with zeros after normalisation, so padding is the mean colour, not black.
        for image, (height, width) in zip(normalized, resized_sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        normalized = F.pad(normalized, (0, side - images.shape[-1], 0, side - images.shape[-2]))
        return (self.image_encoder(normalized.to(self.image_encoder.pos_embed.dtype)),)

    def dense_positions(self, like: Tensor) -> Tensor:
        """Dense positional encoding (1, prompt_embed_dim, grid, grid), dtype and device as `like`."""
        # In float32, because segment_anything's code fails in bfloat16; recomputed in every call, because a
        # non-persistent buffer would be uninitialized after loading.
        layer = self.prompt_encoder.pe_layer
        buffers = {name: value.float() for name, value in layer.named_buffers()}
        return functional_call(layer, buffers, (self.settings.grid_size,)).unsqueeze(0).to(like)

    def low_res_masks(
        self, prompts: Tensor, levels: Levels, positions: Tensor, dense: MaskPrompts | None
    ) -> Tensor:
        """See `BatchedDecoder`."""
        [image] = levels
        no_mask = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).to(image.dtype)
        if dense is None:
            image = image + no_mask
        else:
            image = image + dense.embeddings(self.prompt_encoder.mask_downscaling, no_mask)
        logits, _ = self.mask_decoder(prompts, image, positions)
        return logits

    def encoder_tensors(self) -> dict[str, Tensor]:
        """See `MaskDecoder`."""
        return {**dict(self.image_encoder.named_parameters()), **dict(self.image_encoder.named_buffers())}

    @property
    def frozen_encoder(self) -> nn.Module:
        """See `MaskDecoder`."""
        return self.image_encoder

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """See `MaskDecoder`."""
        return list(self.image_encoder.blocks)

    @property
    def input_side(self) -> int:
        """See `MaskDecoder`."""
        return self.image_encoder.pos_embed.shape[1] * self.settings.patch_size
