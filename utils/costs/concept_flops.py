"""FLOPs of SAM 3's detector of concepts. Most of them are spent once for each class in each image."""

from __future__ import annotations

from dataclasses import dataclass

from model.decoders.concept_settings import NUM_LEVELS, ConceptSettings
from utils.costs.flop_formulas import Flops, attention, linear


@dataclass(frozen=True, kw_only=True)
class Products:
    """Forward FLOPs of one part: with weights, and of attention, both of whose operands depend on the prompt."""

    weights: int = 0
    attention: int = 0

    def __add__(self, other: Products) -> Products:
        return Products(weights=self.weights + other.weights, attention=self.attention + other.attention)

    def __mul__(self, number: int) -> Products:
        return Products(weights=self.weights * number, attention=self.attention * number)

    @property
    def trained(self) -> Flops:
        """With gradients for the prompt alone: weights are frozen, and activations are recomputed in backward."""
        forward = self.weights + self.attention
        return Flops(forward=forward, backward=self.weights + 2 * self.attention, extra=forward)

    @property
    def unused(self) -> Flops:
        """Of what has no gradient, but is recomputed with the rest."""
        forward = self.weights + self.attention
        return Flops(forward=forward, extra=forward)


def attend(queries: int, keys: int, dim: int) -> Products:
    """An attention layer with its four projections."""
    return Products(
        weights=2 * linear(queries, dim, dim) + 2 * linear(keys, dim, dim),
        attention=attention(queries, keys, dim),
    )


def neck_flops(settings: ConceptSettings, num_levels: int = NUM_LEVELS) -> Flops:
    """The neck on one image: the `num_levels` coarsest of the levels that masks need."""
    vision, num = settings.config.vision_config, settings.grid_size[0] ** 2
    width, dim = vision.backbone_config.hidden_size, vision.fpn_hidden_size
    scales = vision.scale_factors[NUM_LEVELS - num_levels : NUM_LEVELS]
    return Flops(forward=sum(level_flops(num, width, dim, scale) for scale in scales))


def level_flops(num: int, width: int, dim: int, scale: float) -> int:
    """One level of the neck from `num` cells of `width` channels, `scale` times as fine."""
    forward = 0
    if scale == 4:
        forward += linear(num, width, 4 * (width // 2)) + linear(4 * num, width // 2, 4 * (width // 4))
    elif scale == 2:
        forward += linear(num, width, 4 * (width // 2))
    cells, channels = int(num * scale**2), width // max(1, int(scale))
    return forward + linear(cells, channels, dim) + linear(cells, 9 * dim, dim)


def looking(settings: ConceptSettings) -> Flops:
    """For one class: the DETR encoder and decoder, which say whether the image shows it."""
    config, dim = settings.config, settings.prompt_embed_dim
    side, tokens = settings.grid_size[0], settings.states_per_class
    pixels, queries = side**2, config.detr_decoder_config.num_queries
    places = queries + 1  # and the token of presence
    encoder, decoder = config.detr_encoder_config, config.detr_decoder_config
    mlp = Products(weights=2 * linear(pixels, dim, encoder.intermediate_size))
    looking_at_all = attend(
        pixels, pixels, dim
    )  # in the first layer of features that no prompt has reached yet
    encoding = (looking_at_all + attend(pixels, tokens, dim) + mlp) * encoder.num_layers
    mlp = Products(weights=2 * linear(places, dim, decoder.intermediate_size))
    layer = attend(places, places, dim) + attend(places, tokens, dim) + attend(places, pixels, dim) + mlp
    presence = Products(weights=2 * linear(1, dim, dim) + linear(1, dim, 1))
    boxes = Products(
        weights=linear(queries, 2 * dim, dim) + 3 * linear(queries, dim, dim) + linear(queries, dim, 4)
        + 2 * (linear(queries * side, 2, dim) + linear(queries * side, dim, decoder.num_attention_heads))
    )  # fmt: skip
    gradients = (encoding + (layer + presence) * decoder.num_layers).trained
    without = Flops(backward=-looking_at_all.trained.backward) if encoder.num_layers else Flops()
    return gradients + without + (boxes * decoder.num_layers).unused


def drawing(settings: ConceptSettings) -> Flops:
    """For one class: its mask, and those of all queries, which only inference uses."""
    dim, pixels = settings.prompt_embed_dim, settings.grid_size[0] ** 2
    queries = settings.config.detr_decoder_config.num_queries
    fine = 16 * pixels
    mask = attend(pixels, settings.states_per_class, dim) + Products(
        weights=linear(4 * pixels, 9 * dim, dim) + linear(fine, 9 * dim, dim) + linear(fine, dim, 1)
    )
    instances = Products(
        weights=linear(fine, dim, dim) + 3 * linear(queries, dim, dim) + linear(fine, dim, queries)
    )
    return mask.trained + instances.unused
