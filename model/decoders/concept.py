"""SAM 3's detector of concepts as a mask decoder: the modules of transformers' `Sam3Model`, prompted by states.

    states of a class name -> seg_projector -> "text" (n, K, C) -+
    image -> vision encoder -> neck -----------------------------+-> DETR encoder -> DETR decoder -> presence, queries
                                                                       |                               |
                                                                       +-> pixels -> mask of the class |
                                                                             +---------> instances <---+

SAM 3 reads a noun phrase with a text encoder of its own; here the language model's states of the name take its place.
A row is one class in one image. The mask of a class is SAM 3's semantic output; its instances come from the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.sam3 import modeling_sam3 as library

from model.decoders.base import BatchedDecoder, MaskPrompts
from model.decoders.concept_settings import NUM_LEVELS, ConceptSettings
from model.decoders.decoded import Candidates, Decoded
from model.decoders.pixels import normalized
from model.inputs import Levels, Size

# Classes computed in one call, and recomputed together in backward: each takes 0.3 GB in bfloat16, and 1 GB in
# training.
CONCEPTS_PER_CALL = 8
MAX_INSTANCES = 100  # of one class in one image, as COCO counts


class ConceptSegmenter(BatchedDecoder):
    """The parts of a `Sam3Model` that images need, under the names that they have there.

    A prompt is K tokens, of which those that are all zeros are none; the last one always counts.
    """

    # What the instances come from stays as it was trained: there are no targets for them.
    trainable_pattern = r"mask_decoder\.semantic_projection\..*|detr_decoder\.presence_(head|layer_norm)\..*"
    mask_prompt_pattern = r"(?!)"  # there are no mask prompts
    has_presence = True
    recomputes = True  # activations in backward; an estimate of their memory turns it off

    def __init__(self, settings: ConceptSettings) -> None:
        super().__init__()
        config = deepcopy(settings.config)
        self.settings: ConceptSettings = settings
        self.vision_encoder = library.Sam3VisionModel(config.vision_config)
        self.detr_encoder = library.Sam3DetrEncoder(config.detr_encoder_config)
        self.detr_decoder = library.Sam3DetrDecoder(config.detr_decoder_config)
        self.mask_decoder = library.Sam3MaskDecoder(config.mask_decoder_config)
        self.dot_product_scoring = library.Sam3DotProductScoring(config)
        # Positions stay in float32 where the model is built in bfloat16, as `from_pretrained` does.
        for module in self.modules():
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = value.float() if value.is_floating_point() else value

    @property
    def states_per_prompt(self) -> int:
        """See `BatchedDecoder`."""
        return self.settings.states_per_class

    def train(self, mode: bool = True) -> ConceptSegmenter:
        """No dropout in what does not train."""
        super().train(mode)
        for part in self.children():
            part.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, resized_sizes: Sequence[Size]) -> Levels:
        """The last layer of the vision encoder, from which `decode` computes the neck's levels.

        Args:
            images: (B, 3, image_size, image_size) uint8 RGB.
            resized_sizes: not needed: every image fills the square.

        Returns:
            One level (B, width of the vision encoder, grid, grid).
        """
        settings = self.settings
        pixels = normalized(
            images, settings.image_size, settings.pixel_mean, settings.pixel_std, settings.title
        )
        states = self.vision_encoder.backbone(
            pixels.to(self.dtype)
        ).last_hidden_state  # (B, grid * grid, width)
        return (states.transpose(1, 2).unflatten(-1, settings.grid_size).contiguous(),)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.detr_decoder.query_embed.weight.dtype

    def decode(
        self, prompts: Tensor, levels: Levels, image_of_mask: Sequence[int], dense: MaskPrompts | None = None
    ) -> Tensor:
        """See `MaskDecoder`: the masks of the classes."""
        return self.decode_all(prompts, levels, image_of_mask, dense).low_res

    def decode_all(
        self,
        prompts: Tensor,
        levels: Levels,
        image_of_mask: Sequence[int],
        dense: MaskPrompts | None = None,
        *,
        min_score: float | None = None,
    ) -> Decoded:
        """See `BatchedDecoder`."""
        assert dense is None, "a concept has no mask prompt"
        side = self.settings.mask_side
        found: list[tuple[Tensor, Tensor, tuple[Candidates, ...]]] = [
            self._run(partial(self._draw, min_score=min_score), *each)
            for each in self._pieces(prompts, levels, image_of_mask, NUM_LEVELS)
        ]
        none = levels[0].new_zeros(0, dtype=torch.float32)
        return Decoded(
            low_res=torch.cat([none.view(0, 1, 1).expand(0, side, side), *(masks for masks, _, _ in found)]),
            presence=torch.cat([none, *(presence for _, presence, _ in found)]),
            candidates=None if min_score is None else tuple(one for _, _, found in found for one in found),
        )

    def presence(self, prompts: Tensor, levels: Levels, image_of_prompt: Sequence[int]) -> Tensor:
        """See `BatchedDecoder`."""
        pieces = self._pieces(prompts, levels, image_of_prompt, 1)
        none = levels[0].new_zeros(0, dtype=torch.float32)
        return torch.cat([none, *(self._run(self._presence, *each) for each in pieces)])

    def _pieces(
        self, prompts: Tensor, levels: Levels, owners: Sequence[int], num_levels: int
    ) -> list[tuple[Any, ...]]:
        """Prompts, which of their tokens count, image of each, and the neck's levels, for each call."""
        if not len(prompts):
            return []
        like = levels[0]
        with torch.no_grad():
            # As many of the finest levels as are needed, the last of them of scale 1.
            layers = self.vision_encoder.neck.fpn_layers[NUM_LEVELS - num_levels : NUM_LEVELS]
            features = [layer(like) for layer in layers]
        prompts = prompts.to(like.dtype)
        is_token = prompts.detach().ne(0).any(-1)
        is_token[:, -1] = True
        rows = torch.tensor(list(owners)).to(like.device, non_blocking=True)
        return [
            (prompts[start:end], is_token[start:end], rows[start:end], *features)
            for start in range(0, len(prompts), CONCEPTS_PER_CALL)
            for end in [start + CONCEPTS_PER_CALL]
        ]

    def _run(self, function: Any, *arguments: Any) -> Any:
        """A call whose activations are recomputed in backward."""
        if not (self.recomputes and torch.is_grad_enabled()):
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)

    def _presence(self, prompts: Tensor, is_token: Tensor, rows: Tensor, coarse: Tensor) -> Tensor:
        """(n,) float32 logits."""
        _, decoded = self._detect(prompts, is_token, coarse[rows])
        return decoded.presence_logits[-1][:, 0].float()

    def _draw(
        self,
        prompts: Tensor,
        is_token: Tensor,
        rows: Tensor,
        *features: Tensor,
        min_score: float | None,
    ) -> tuple[Tensor, Tensor, tuple[Candidates, ...]]:
        """(n, mask_side, mask_side) masks, (n,) presence, float32 logits, and the instances from `min_score` on."""
        levels = [level[rows] for level in features]
        encoded, decoded = self._detect(prompts, is_token, levels[-1])
        queries = decoded.intermediate_hidden_states[-1]  # (n, num_queries, C)
        drawn = self.mask_decoder(
            decoder_queries=queries,
            backbone_features=levels,
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=prompts,
            prompt_mask=attended(is_token),
        )
        presence = decoded.presence_logits[-1][:, 0].float()
        candidates: tuple[Candidates, ...] = ()
        if min_score is not None:
            logits = self.dot_product_scoring(queries[None], encoded.text_features, is_token)[0, ..., 0]
            scores = logits.float().sigmoid() * presence.sigmoid()[:, None]  # (n, num_queries)
            candidates = tuple(best(*one, min_score) for one in zip(scores, drawn.pred_masks, strict=True))
        return drawn.semantic_seg[:, 0].float(), presence, candidates

    def _detect(self, prompts: Tensor, is_token: Tensor, coarse: Tensor) -> tuple[Any, Any]:
        """Outputs of the DETR encoder and decoder for n prompts, each with its own row of features."""
        positions, mask = self.dense_positions(coarse).expand(len(coarse), -1, -1, -1), attended(is_token)
        encoded = self.detr_encoder(
            vision_features=[coarse],
            text_features=prompts,
            vision_pos_embeds=[positions],
            text_mask=mask,
        )
        decoded = self.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=encoded.text_features,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=mask,
            # On the host: as a tensor on a GPU, each of the two numbers would synchronize with it.
            spatial_shapes=np.array([self.settings.grid_size]),
        )
        return encoded, decoded

    def dense_positions(self, like: Tensor) -> Tensor:
        """(1, C, grid, grid) positions of the features, dtype and device as `like`, rounded once."""
        layer = self.vision_encoder.neck.position_encoding
        shape = (1, self.settings.prompt_embed_dim, *self.settings.grid_size)
        # Not the cached method: it would keep a tensor that was made of no memory, in estimates.
        build = type(layer).build_sine_position_embedding.__wrapped__
        return build(
            shape, like.device, torch.float32, layer.num_position_features, layer.normalize, layer.scale,
            layer.temperature,
        ).to(like.dtype)  # fmt: skip

    def encoder_tensors(self) -> dict[str, Tensor]:
        """See `MaskDecoder`."""
        return {
            name: value
            for name, value in self.named_parameters()
            if name.startswith("vision_encoder.backbone.")
        }

    @property
    def frozen_encoder(self) -> nn.Module:
        """See `MaskDecoder`."""
        return self.vision_encoder.backbone

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """See `MaskDecoder`."""
        return list(self.vision_encoder.backbone.layers)


def attended(is_token: Tensor) -> Tensor:
    """(n, K) bool -> (n, 1, 1, K), a mask that the library takes as it is.

    Of a mask (n, K) it would ask whether it hides anything, and so synchronize with the device.
    """
    return is_token[:, None, None, :]


def best(scores: Tensor, masks: Tensor, min_score: float) -> Candidates:
    """The candidates of one prompt with a score above `min_score`, at most `MAX_INSTANCES`."""
    order = scores.argsort(descending=True, stable=True)[:MAX_INSTANCES]
    chosen = order[scores[order] > min_score]
    return Candidates(masks=masks[chosen], scores=scores[chosen])
