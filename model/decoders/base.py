"""What a mask decoder is: `encode` an image once, `decode` one mask for each prompt.

    uint8 pixels -> encode -> levels of features, frozen ---+
    prompts (n, K, C), optional mask prompts (n, 1, s, s) --+-> decode -> logits (n, s, s) -> mask_resize -> masks

A decoder is one file beside this one: settings that say its sizes (`DecoderSettings`), and a module (`MaskDecoder`).
`build.py` knows the kinds. A detector of concepts (concept.py) is prompted by several states, and gives more than
masks: `BatchedDecoder.decode_all`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.buffers import ExactBuffers
from model.decoders.decoded import Decoded
from model.decoders.geometry import MaskResize
from model.decoders.transform import SQUARE
from model.inputs import Levels, Size

# Masks decoded in one call: with a 64 x 64 grid, each activation of 64 prompts takes 256 MB in bfloat16.
MASKS_PER_CALL = 64


@dataclass(frozen=True, kw_only=True)
class MaskPrompts:
    """Dense prompts of n masks: where each of them is thought to be."""

    logits: Tensor  # (n, 1, mask_side, mask_side)
    gates: Tensor  # (n,): 0 is as without a mask prompt, 1 as the mask decoder was trained

    def __getitem__(self, chosen: slice) -> MaskPrompts:
        """Those of some masks."""
        return MaskPrompts(logits=self.logits[chosen], gates=self.gates[chosen])

    def embeddings(self, embed: Callable[[Tensor], Tensor], without: Tensor) -> Tensor:
        """(n, prompt_embed_dim, grid, grid): from `without`, for no mask prompt, to `embed(logits)`."""
        gates = self.gates.to(without.dtype).view(-1, 1, 1, 1)
        return without + gates * (embed(self.logits.to(without.dtype)) - without)


class DecoderSettings(Protocol):
    """The sizes of a mask decoder, known before its weights are read; stored as `sam_config` in config.json."""

    @property
    def kind(self) -> str:
        """Its name in `build.KINDS`."""
        ...

    @property
    def title(self) -> str:
        """Its name for people: "SAM 2"."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square that the encoder reads, in pixels."""
        ...

    @property
    def resize(self) -> str:
        """How an image becomes that square, see `transform.RESIZES`."""
        ...

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of the coarsest level of features."""
        ...

    @property
    def mask_side(self) -> int:
        """Side of the low-resolution masks, and of mask prompts."""
        ...

    @property
    def prompt_embed_dim(self) -> int:
        """Width of a prompt token."""
        ...

    @property
    def embedding_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(channels, height, width) of each level of one image, the finest first."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json, from which `build.decoder_settings` makes the settings again."""
        ...


class MaskDecoder(Protocol):
    """Masks from prompt embeddings. The module is `sam` in the model, whatever its kind."""

    settings: DecoderSettings
    # Full names, below this module, of the parameters that train. Nothing that `encode` reads may be among them.
    trainable_pattern: str
    # Further ones that train where there are mask prompts.
    mask_prompt_pattern: str

    def encode(self, images: Tensor, resized_sizes: Sequence[Size]) -> Levels:
        """Features of a batch of images, without gradients.

        Args:
            images: (B, 3, h, w) uint8 RGB as `ImageTransform` gives them, padded at the right and the bottom.
            resized_sizes: (height, width) of each image without padding.

        Returns:
            One or more tensors (B, *shape), for each of `embedding_shapes`, in `embedding_dtype`.
        """
        ...

    def decode(
        self, prompts: Tensor, levels: Levels, image_of_mask: Sequence[int], dense: MaskPrompts | None = None
    ) -> Tensor:
        """Low-resolution logits, one mask for each prompt.

        Args:
            prompts: (n, K, prompt_embed_dim): K tokens are the sparse prompt of a mask; n may be 0.
            levels: of B images, from `encode`.
            image_of_mask: for each prompt the index of its image.
            dense: mask prompts; None: no mask prompt.

        Returns:
            (n, mask_side, mask_side) float32 logits.
        """
        ...

    def mask_resize(self, resized_size: Size, original_size: Size, device: torch.device) -> MaskResize:
        """The resize of one image's low-resolution masks to its original size; both sizes are (height, width)."""
        ...

    def resize_masks(self, low_res: Tensor, resized_size: Size, original_size: Size) -> Tensor:
        """Logits (n, mask_side, mask_side) -> (n, height, width) of the original image, float32."""
        ...

    def encoder_tensors(self) -> Mapping[str, Tensor]:
        """Weights and buffers that `encode` reads, by name."""
        ...

    @property
    def frozen_encoder(self) -> nn.Module:
        """The part of `encode` whose precision may differ from the rest; its weights take nearly all of the time."""
        ...

    @property
    def embedding_dtype(self) -> torch.dtype:
        """Of what `encode` returns."""
        ...

    @property
    def encoder_blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks of the image encoder, for torch.compile."""
        ...

    @property
    def input_side(self) -> int:
        """Side of the encoder's input by its weights, pixels."""
        ...


class BatchedDecoder(ExactBuffers):
    """What decoders share: masks of several images in one call, in chunks where no gradients are computed."""

    settings: DecoderSettings
    trainable_pattern: str
    mask_prompt_pattern: str
    mask_decoder: nn.Module
    has_presence = False  # whether it says of a prompt how probable it is that the image shows it

    @property
    def states_per_prompt(self) -> int:
        """States of the language model that prompt a mask: 1, that which decided on it, or those of its name."""
        return 1

    def encode(self, images: Tensor, resized_sizes: Sequence[Size]) -> Levels:
        """See `MaskDecoder`."""
        raise NotImplementedError

    def dense_positions(self, like: Tensor) -> Tensor:
        """Dense positional encoding (1, prompt_embed_dim, grid, grid), dtype and device as `like`."""
        raise NotImplementedError

    def low_res_masks(
        self, prompts: Tensor, levels: Levels, positions: Tensor, dense: MaskPrompts | None
    ) -> Tensor:
        """Logits (n, mask_side, mask_side) of n prompts, each with its own row of every level."""
        raise NotImplementedError

    def encoder_tensors(self) -> Mapping[str, Tensor]:
        """See `MaskDecoder`."""
        raise NotImplementedError

    @property
    def frozen_encoder(self) -> nn.Module:
        """See `MaskDecoder`."""
        raise NotImplementedError

    @property
    def embedding_dtype(self) -> torch.dtype:
        """See `MaskDecoder`: that of the part that reads them."""
        return next(self.mask_decoder.parameters()).dtype

    @property
    def encoder_blocks(self) -> Sequence[nn.Module]:
        """See `MaskDecoder`."""
        raise NotImplementedError

    @property
    def input_side(self) -> int:
        """See `MaskDecoder`."""
        return self.settings.image_size

    def decode(
        self, prompts: Tensor, levels: Levels, image_of_mask: Sequence[int], dense: MaskPrompts | None = None
    ) -> Tensor:
        """See `MaskDecoder`; the mask decoders of the libraries raise for n = 0."""
        like = levels[-1]
        if not len(prompts):
            return like.new_zeros((0, *(self.settings.mask_side,) * 2), dtype=torch.float32)
        # Non-blocking: otherwise the copy would synchronize the host with the device.
        owners = torch.tensor(list(image_of_mask)).to(like.device, non_blocking=True)
        positions = self.dense_positions(like)
        # One call when gradients are computed: chunks would save no memory, because all activations are kept for
        # backward, and under ZeRO-3 all processes must call the decoder equally often.
        per_call = len(prompts) if torch.is_grad_enabled() else MASKS_PER_CALL
        masks = []
        for start in range(0, len(prompts), per_call):
            chunk = slice(start, start + per_call)
            logits = self.low_res_masks(
                prompts[chunk].to(like.dtype),
                tuple(level[owners[chunk]] for level in levels),
                positions,
                None if dense is None else dense[chunk],
            )
            masks.append(logits.float())
        return torch.cat(masks)

    def decode_all(
        self,
        prompts: Tensor,
        levels: Levels,
        image_of_mask: Sequence[int],
        dense: MaskPrompts | None = None,
        *,
        min_score: float | None = None,
    ) -> Decoded:
        """`decode`, with what a decoder says beside the masks.

        Args:
            min_score: candidates are instances with a higher score; None: none. Unused by a decoder without.
        """
        return Decoded(low_res=self.decode(prompts, levels, image_of_mask, dense))

    def presence(self, prompts: Tensor, levels: Levels, image_of_prompt: Sequence[int]) -> Tensor:
        """(n,) float32 logits that the images show what the prompts name, without masks; where `has_presence`."""
        raise NotImplementedError

    def mask_resize(self, resized_size: Size, original_size: Size, device: torch.device) -> MaskResize:
        """See `MaskDecoder`."""
        side, inside = enlarged(self.settings, resized_size)
        return MaskResize.between(self.settings.mask_side, side, inside, original_size, device)

    def resize_masks(self, low_res: Tensor, resized_size: Size, original_size: Size) -> Tensor:
        """See `MaskDecoder`."""
        return self.mask_resize(resized_size, original_size, low_res.device).enlarge(low_res.float())


def enlarged(settings: DecoderSettings, resized_size: Size) -> tuple[int, Size]:
    """Side of the square to which masks are enlarged first, and the (height, width) that the image has in it.

    SAM enlarges to its input, where padding is cut off. A decoder that squashes the image to a square fills it, and
    interpolates once, from the low resolution to the original size.
    """
    if settings.resize == SQUARE:
        return settings.mask_side, (settings.mask_side,) * 2
    return settings.image_size, resized_size
