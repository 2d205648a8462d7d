"""LLaVA's images: uint8, resized and cropped for CLIP; each has the same number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from model.backbones.base import PreparedImage
from model.choices import ASPECT_RATIOS
from model.errors import UserError
from model.huggingface import from_pretrained
from model.image_resize import resize_fast
from model.text.placeholder import Placeholder
from model.text.special_tokens import IMAGE
from model.text.templates import OwnChatTemplate
from model.token_grid import Region, TokenGrid

MAX_SIDE = 8192  # pixels of an image for CLIP; the published ones have 336
MAX_IMAGE_TOKENS = 65_536


@dataclass(frozen=True, kw_only=True)
class ClipImages:
    """See `ImageReader`."""

    clip: CLIPImageProcessorPil
    num_image_tokens: int  # patch features of one image in the language model's input
    image_aspect_ratio: str = "square"  # one of ASPECT_RATIOS

    def __post_init__(self) -> None:
        value = self.num_image_tokens
        if type(value) is not int or not 1 <= value <= MAX_IMAGE_TOKENS:
            raise UserError(f"num_image_tokens is {value!r}; it is a number from 1 to {MAX_IMAGE_TOKENS}")
        if self.image_aspect_ratio not in ASPECT_RATIOS:
            raise UserError(
                f"unknown image_aspect_ratio {self.image_aspect_ratio!r}; known: {', '.join(ASPECT_RATIOS)}"
            )

    @property
    def image_token(self) -> str:
        """See `ImageReader`."""
        return IMAGE

    @property
    def template(self) -> OwnChatTemplate | None:
        """See `ImageReader`: any of PROMPTS."""
        return None

    @property
    def placeholder(self) -> Placeholder | None:
        """The same for every image; LLaVA's templates write the image token as often as needed themselves."""
        return Placeholder(ids=(), num_image_tokens=self.num_image_tokens)

    def prepare(self, image: np.ndarray, *, fast: bool = False) -> PreparedImage:
        """See `ImageReader`."""
        assert self.placeholder is not None
        pixels = torch.from_numpy(self.clip_image(image, fast=fast))
        grid = TokenGrid(
            size=(self.grid_side, self.grid_side),
            region=self.region(image.shape[0], image.shape[1]),
            tokens=None
            if self.grid_side**2 == self.num_image_tokens
            else tuple(range(1, self.grid_side**2 + 1)),
        )
        return PreparedImage(pixels={"clip_images": pixels}, placeholder=self.placeholder, grid=grid)

    @property
    def grid_side(self) -> int:
        """Patches along a side; a class token in front of them is not counted."""
        return math.isqrt(self.num_image_tokens)

    def region(self, height: int, width: int) -> Region:
        """The part of an image that CLIP sees."""
        if self.image_aspect_ratio == "stretch":
            return 0, 0, height, width
        if self.image_aspect_ratio == "pad":
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            return -top, -left, side - top, side - left
        shortest, crop = min(height, width), self.clip.crop_size["height"]
        edge = self.clip.size.get("shortest_edge", crop)
        # Rounded as the processor does: the longer side is resized, then its middle is cut out.
        sides = [edge if side == shortest else int(edge * side / shortest) for side in (height, width)]
        starts = [(side - crop) // 2 for side in sides]
        (top, bottom), (left, right) = (
            (start / resized * side, (start + crop) / resized * side)
            for start, resized, side in zip(starts, sides, (height, width), strict=True)
        )
        return top, left, bottom, right

    def limit(self, min_tokens: int | None, max_tokens: int | None) -> None:
        """See `ImageReader`."""
        for name, value in (("min", min_tokens), ("max", max_tokens)):
            if value is not None:
                raise UserError(
                    f"--{name}_image_tokens {value}: every image of this LLaVA has {self.num_image_tokens} tokens; "
                    "leave it out"
                )

    def collate(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """See `ImageReader`: (B, 3, S, S) uint8."""
        return {"clip_images": torch.stack([image.pixels["clip_images"] for image in images])}

    def save(self, folder: Path) -> dict[str, Any]:
        """See `ImageReader`."""
        self.clip.save_pretrained(folder)
        return {"num_image_tokens": self.num_image_tokens, "image_aspect_ratio": self.image_aspect_ratio}

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> ClipImages:
        """What `save` wrote; `settings` are its entries of processor_config.json."""
        clip = from_pretrained(CLIPImageProcessorPil, folder)
        check_clip(clip, folder)
        return cls(clip=clip, **settings)

    def clip_image(self, image: np.ndarray, *, fast: bool = False) -> np.ndarray:
        """(height, width, 3) uint8 -> (3, size, size) uint8: resized and cropped for CLIP.

        Equal to the original processor, which resizes with Pillow; with `fast`, within two grey levels of it.
        """
        if self.image_aspect_ratio == "pad":
            image = pad_to_square(image, self.clip.image_mean)
        elif self.image_aspect_ratio == "stretch":
            size = self.clip.crop_size["width"], self.clip.crop_size["height"]
            squashed = Image.fromarray(image).resize(size, Image.Resampling(self.clip.resample))
            return np.ascontiguousarray(np.asarray(squashed).transpose(2, 0, 1))
        shortest = self.clip.size.get("shortest_edge")
        fast = fast and shortest is not None and self.clip.resample == Image.Resampling.BICUBIC
        if fast:
            short, long = min(image.shape[:2]), max(image.shape[:2])
            height, width = (
                shortest if side == short else int(shortest * long / short) for side in image.shape[:2]
            )
            image = resize_fast(image, (height, width), "bicubic")
        pixels = self.clip(
            image,
            do_resize=not fast,
            do_rescale=False,
            do_normalize=False,
            input_data_format="channels_last",
            return_tensors="np",
        )["pixel_values"][0]
        assert pixels.dtype == np.uint8
        return pixels


def pad_to_square(image: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """(height, width, 3) uint8 -> centred in a square of the mean colour, as in LLaVA-1.5."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [int(value * 255) for value in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def check_clip(clip: CLIPImageProcessorPil, folder: str | Path) -> None:
    """UserError unless the settings of a CLIP image processor say how an image is resized, within `MAX_SIDE`."""
    for name in ("size", "crop_size"):
        try:
            sides = [side for side in dict(getattr(clip, name)).values() if side is not None]
        except (TypeError, ValueError):
            sides = [getattr(clip, name)]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            raise UserError(
                f"{folder}/preprocessor_config.json: {name} is {sides}; its sides are numbers from 1 to {MAX_SIDE}"
            )
    try:
        Image.Resampling(clip.resample)
    except ValueError:
        raise UserError(
            f"{folder}/preprocessor_config.json: resample {clip.resample!r} is none of Pillow's, 0 to 5"
        ) from None
    for name in ("image_mean", "image_std"):
        values = getattr(clip, name)
        if not isinstance(values, list | tuple) or not all(
            isinstance(value, int | float) for value in values
        ):
            raise UserError(f"{folder}/preprocessor_config.json: {name} is {values!r}; it is three numbers")
