"""From the states that decide on a [SEG] to masks and their losses: the one path of training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from model.choices import check_spatial
from model.config import LasagnaConfig
from model.decoders.base import BatchedDecoder, MaskPrompts, enlarged
from model.decoders.decoded import Candidates, Instances
from model.errors import UserError
from model.inputs import Size
from model.losses import mask_losses, presence_losses
from model.outputs import EncodedImages, SimilarityMaps
from model.prompt_states import states_before
from model.spatial_prompt import SpatialPrompt, SpatialPrompts, map_losses
from model.token_grid import average_over_cells, place_in_prompt

MIN_SCORE = 0.3  # of an instance in an answer, as in transformers' `post_process_instance_segmentation`


@dataclass(frozen=True, kw_only=True, eq=False)
class LowResMasks:
    """The answers of the mask decoder to groups of states."""

    masks: Sequence[Tensor]  # for each group (n_i, mask_side, mask_side) float32 logits
    maps: Sequence[Tensor] | None = None  # (n_i, grid rows, grid columns), with a spatial prompt
    presence: Sequence[Tensor] | None = None  # (n_i,) float32 logits, with a concept head
    candidates: Sequence[Sequence[Candidates]] | None = None  # n_i, if they were asked for


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundMasks:
    """What one group of states found in its image."""

    masks: Tensor  # (n_i, height, width) float32 logits at the original size
    maps: SimilarityMaps | None = None  # n_i, with a spatial prompt
    presence: list[float] | None = None  # n_i probabilities, with a concept head
    instances: tuple[Instances, ...] | None = None  # n_i, with a concept head


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
            states: groups (n_i, hidden_dim) of hidden states one position before a [SEG]; n_i may be 0. With a
                concept head (n_i, states_per_prompt, hidden_dim), see model/prompt_states.py.
            images: the encoded batch.
            owners: for each group the index of its image.
            image_states: for each image (rows * columns, hidden_dim) states of its token grid; needed with a spatial
                prompt.

        Returns:
            For each group (n_i, height, width) float32 logits at the original size of its image.
        """
        return self.at_original_size(
            self.decode_low_res(states, images, owners, image_states).masks, images, owners
        )

    def decode_found(
        self,
        states: Sequence[Tensor],
        images: EncodedImages,
        owners: Sequence[int],
        image_states: Sequence[Tensor] | None = None,
        min_score: float = MIN_SCORE,
    ) -> list[FoundMasks]:
        """As `decode_masks`, with the maps of a spatial prompt, the presence and instances of a concept head.

        Args:
            min_score: instances have a higher score.
        """
        low_res = self.decode_low_res(states, images, owners, image_states, min_score)
        masks = self.at_original_size(low_res.masks, images, owners)
        found = []
        for index, (of_group, owner) in enumerate(zip(masks, owners, strict=True)):
            instances = maps = None
            if low_res.candidates is not None:
                size = images.resized_sizes[owner], images.original_sizes[owner]
                instances = tuple(self._instances(one, *size) for one in low_res.candidates[index])
            presence = None if low_res.presence is None else low_res.presence[index].sigmoid().tolist()
            if self.spatial_prompt is not None:
                grid = images.token_grids[owner]
                no_maps = torch.zeros(0, *grid.size, device=images.device)  # where no group has a [SEG]
                logits = no_maps if low_res.maps is None else low_res.maps[index]
                maps = SimilarityMaps(logits=logits, grid=grid)
            found.append(FoundMasks(masks=of_group, maps=maps, presence=presence, instances=instances))
        return found

    def decode_presence(
        self, states: Sequence[Tensor], images: EncodedImages, owners: Sequence[int]
    ) -> list[Tensor]:
        """For each group (n_i,) float32 logits of a concept head that the image shows what the states name."""
        counts = [len(group) for group in states]
        image_of_prompt = [owner for owner, count in zip(owners, counts, strict=True) for _ in range(count)]
        if not image_of_prompt:
            return [torch.zeros(0, device=images.device) for _ in counts]
        prompts = self._prompts(torch.cat(list(states)))
        return list(self.sam.presence(prompts, images.embeddings, image_of_prompt).split(counts))

    def decode_low_res(
        self,
        states: Sequence[Tensor],
        images: EncodedImages,
        owners: Sequence[int],
        image_states: Sequence[Tensor] | None = None,
        min_score: float | None = None,
    ) -> LowResMasks:
        """As `decode_masks`, but (n_i, mask_side, mask_side) as the decoder gives them, with what it says besides.

        Args:
            min_score: candidates of a concept head are instances with a higher score; None: none.
        """
        if not states:
            return LowResMasks(masks=[])
        counts = [len(group) for group in states]
        image_of_mask = [owner for owner, count in zip(owners, counts, strict=True) for _ in range(count)]
        tokens, dense, maps = torch.cat(list(states)), None, None
        tokens = tokens.unsqueeze(1) if tokens.ndim == 2 else tokens  # (n, K, hidden_dim)
        if image_of_mask:
            tokens = self._prompts(tokens)
            if self.spatial_prompt is not None:
                spatial = self._spatial(self.spatial_prompt, states, images, owners, image_states)
                tokens = torch.cat([tokens, spatial.latent], dim=1)
                dense, maps = self._mask_prompts(spatial, images, owners), spatial.maps
        decoded = self.sam.decode_all(tokens, images.embeddings, image_of_mask, dense, min_score=min_score)
        candidates = decoded.candidates
        ends = list(accumulate(counts, initial=0))
        return LowResMasks(
            masks=decoded.low_res.split(counts),
            maps=maps,
            presence=None if decoded.presence is None else decoded.presence.split(counts),
            candidates=None if candidates is None else [candidates[a:b] for a, b in pairwise(ends)],
        )

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
        nothing = states.new_zeros(1, dtype=torch.long)
        deciding = states_before(states, nothing, nothing + 1, nothing, self.sam.states_per_prompt)
        found = self.decode_low_res([deciding], images, [0], image_states)
        return 0.0 * sum(
            parts[0].sum() for parts in (found.masks, found.maps, found.presence) if parts is not None
        )

    def add_spatial_prompt(self, num_latent_prompts: int = 0, *, seed: int = 0) -> None:
        """Gives the model a new spatial prompt, with closed gates: its masks are those without.

        Raises:
            UserError: it has one with another number of latent prompts, or a backbone without shared prefixes.
        """
        check_spatial(True, num_latent_prompts, self.config.mask_head)
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

    def presence_terms(
        self, present: Sequence[Tensor] | None, absent: Sequence[Tensor], images: EncodedImages
    ) -> Tensor | None:
        """Binary cross-entropy (n + m,) of a concept head's presence; None without one.

        Args:
            present: logits of the classes with a [SEG], by image; None if there are none.
            absent: states of classes with a [NEG], by image.
        """
        if not self.sam.has_presence:
            return None
        of_absent = self.decode_presence(absent, images, range(len(images)))
        nothing = torch.zeros(0, device=images.device)
        return presence_losses(torch.cat([nothing, *(present or ())]), torch.cat([nothing, *of_absent]))

    def _prompts(self, states: Tensor) -> Tensor:
        """(n, K, hidden_dim) states -> (n, K, prompt_embed_dim) tokens; zeros, where no token is, stay zeros."""
        tokens = self.seg_projector(states)
        if states.shape[1] == 1:
            return tokens
        return tokens.masked_fill(~states.detach().ne(0).any(-1, keepdim=True), 0)

    def _instances(self, found: Candidates, resized_size: Size, original_size: Size) -> Instances:
        """Candidates at the original size of their image, as the library's image processor does it."""
        probabilities = self.sam.resize_masks(found.masks.float().sigmoid(), resized_size, original_size)
        return Instances(masks=(probabilities > 0.5).cpu(), scores=found.scores.cpu())

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
