"""From the states that decide on a [SEG] to masks and their losses: the one path of training and inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import LasagnaConfig, check_spatial
from model.decoders.base import BatchedDecoder, MaskPrompts, enlarged
from model.errors import UserError
from model.losses import mask_losses
from model.outputs import EncodedImages, SimilarityMaps
from model.spatial_prompt import SpatialPrompt, SpatialPrompts, map_losses
from model.token_grid import average_over_cells, place_in_prompt


class MaskPathMixin(nn.Module):
    """Methods of the whole model that prompt its mask decoder."""

    config: LasagnaConfig
    sam: BatchedDecoder
    seg_projector: nn.Sequential
    spatial_prompt: SpatialPrompt | None

    def decode_masks(
        self,
        states: Sequence[Tensor],
        images: EncodedImages,
        owners: Sequence[int],
        image_states: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Decodes one mask for each state that decided on a [SEG].

        Args:
            states: groups (n_i, hidden_dim) of hidden states one position before a [SEG]; n_i may be 0.
            images: the encoded batch.
            owners: for each group the index of its image.
            image_states: for each image (rows * columns, hidden_dim) states of its token grid; needed with a spatial
                prompt.

        Returns:
            For each group (n_i, height, width) float32 logits at the original size of its image.
        """
        return self.decode_masks_and_maps(states, images, owners, image_states)[0]

    def decode_masks_and_maps(
        self,
        states: Sequence[Tensor],
        images: EncodedImages,
        owners: Sequence[int],
        image_states: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[SimilarityMaps | None]]:
        """As `decode_masks`; beside the masks of each group its similarity maps, None without a spatial prompt."""
        low_res, logits = self.decode_low_res(states, images, owners, image_states)
        masks = self.at_original_size(low_res, images, owners)
        if self.spatial_prompt is None:
            return masks, [None] * len(masks)
        grids = [images.token_grids[owner] for owner in owners]
        if logits is None:  # no group has a [SEG]
            logits = [torch.zeros(0, *grid.size, device=images.device) for grid in grids]
        return masks, [SimilarityMaps(logits=one, grid=grid) for one, grid in zip(logits, grids, strict=True)]

    def decode_low_res(
        self,
        states: Sequence[Tensor],
        images: EncodedImages,
        owners: Sequence[int],
        image_states: Sequence[Tensor] | None = None,
    ) -> tuple[Sequence[Tensor], list[Tensor] | None]:
        """As `decode_masks`, but (n_i, mask_side, mask_side) as the mask decoder gives them.

        Beside them the similarity maps (n_i, grid rows, grid columns) of each group; None without a spatial prompt.
        """
        if not states:
            return [], None
        counts = [len(group) for group in states]
        image_of_mask = [owner for owner, count in zip(owners, counts, strict=True) for _ in range(count)]
        tokens, dense, maps = torch.cat(list(states)).unsqueeze(1), None, None
        if image_of_mask:
            tokens = self.seg_projector(tokens)
            if self.spatial_prompt is not None:
                spatial = self._spatial(self.spatial_prompt, states, images, owners, image_states)
                tokens = torch.cat([tokens, spatial.latent], dim=1)
                dense, maps = self._mask_prompts(spatial, images, owners), spatial.maps
        low_res = self.sam.decode(tokens, images.embeddings, image_of_mask, dense).split(counts)
        return low_res, maps

    def at_original_size(
        self, low_res: Sequence[Tensor], images: EncodedImages, owners: Sequence[int]
    ) -> list[Tensor]:
        """Low-resolution masks of groups, as in `decode_low_res`, at the original sizes of their images."""
        return [
            self.sam.resize_masks(masks, images.resized_sizes[owner], images.original_sizes[owner])
            for masks, owner in zip(low_res, owners, strict=True)
        ]

    def mask_terms(
        self, low_res: Sequence[Tensor], images: EncodedImages, gt_masks: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice loss (n,) of the masks of each image."""
        if gt_masks is None:
            nothing = torch.zeros(0, device=images.device)
            return nothing, nothing
        sizes = zip(images.resized_sizes, images.original_sizes, strict=True)
        resizes = [self.sam.mask_resize(*size, images.device) for size in sizes]
        return mask_losses(low_res, resizes, gt_masks)

    def map_terms(
        self, maps: Sequence[Tensor] | None, images: EncodedImages, gt_masks: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor] | None:
        """The same of the similarity maps of each image; None without a spatial prompt."""
        if self.spatial_prompt is None:
            return None
        if maps is None or gt_masks is None:
            nothing = torch.zeros(0, device=images.device)
            return nothing, nothing
        averages = [
            average_over_cells(grid, size, images.device)
            for grid, size in zip(images.token_grids, images.original_sizes, strict=True)
        ]
        return map_losses(maps, averages, gt_masks)

    def untouched_parts(
        self, states: Tensor, images: EncodedImages, image_states: Sequence[Tensor] | None
    ) -> Tensor:
        """Zero, with a gradient path through projection, mask decoder and spatial prompt.

        ZeRO-2 and 3 wait for every rank's gradients: a rank whose batch has no [SEG] must use the parts too.
        """
        [low_res], maps = self.decode_low_res([states[:1, 0]], images, [0], image_states)
        return 0.0 * (low_res.sum() + (0.0 if maps is None else maps[0].sum()))

    def add_spatial_prompt(self, num_latent_prompts: int = 0, *, seed: int = 0) -> None:
        """Gives the model a new spatial prompt, with closed gates: its masks are those without.

        Raises:
            UserError: it has one with another number of latent prompts, or a backbone without shared prefixes.
        """
        check_spatial(True, num_latent_prompts)
        if self.spatial_prompt is not None:
            if num_latent_prompts != (known := self.config.num_latent_prompts):
                raise UserError(
                    f"this model was trained with --num_latent_prompts {known}, not {num_latent_prompts}; pass "
                    f"{known}"
                )
            return
        if not self.backbone.can_crop:
            raise UserError(
                f"--spatial_prompt does not go with a {self.config.vlm_config.model_type}, whose answers are not "
                "computed behind a shared image; leave it out"
            )
        self.config.spatial_prompt, self.config.num_latent_prompts = True, num_latent_prompts
        module = build_spatial_prompt(self.config)
        assert module is not None
        module.initialize(torch.Generator().manual_seed(seed))
        like = self.seg_projector[0].weight
        self.spatial_prompt = module.to(like.device, like.dtype)

    def _spatial(
        self,
        module: SpatialPrompt,
        states: Sequence[Tensor],
        images: EncodedImages,
        owners: Sequence[int],
        image_states: Sequence[Tensor] | None,
    ) -> SpatialPrompts:
        assert image_states is not None, "a spatial prompt reads the states of the image's tokens"
        return module(states, image_states, [grid.size for grid in images.token_grids], owners)

    def _mask_prompts(
        self, spatial: SpatialPrompts, images: EncodedImages, owners: Sequence[int]
    ) -> MaskPrompts:
        """The maps where their tokens lie in the square of the mask decoder."""
        placed = []
        for maps, owner in zip(spatial.maps, owners, strict=True):
            square, inside = enlarged(self.sam.settings, images.resized_sizes[owner])
            place = place_in_prompt(
                images.token_grids[owner],
                self.sam.settings.mask_side,
                square,
                inside,
                images.original_sizes[owner],
                images.device,
            )
            placed.append(place(maps))
        return MaskPrompts(logits=torch.cat(placed).unsqueeze(1), gates=spatial.gates)


def build_spatial_prompt(config: LasagnaConfig) -> SpatialPrompt | None:
    """The spatial prompt of a model, if it has one."""
    if not config.spatial_prompt:
        return None
    return SpatialPrompt(
        config.vlm_config.text_config.hidden_size,
        config.sam_settings.prompt_embed_dim,
        num_latent_prompts=config.num_latent_prompts,
    )
