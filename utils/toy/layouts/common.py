"""What the layout writers share: which scene goes where, and how pictures, labels and JSON are written."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.errors import UserError
from utils.toy.scene import Scene, draw_scene

# Splits live in seeds of their own, layouts in index ranges of their own: no scene is drawn twice.
SEED_OF_SPLIT = {
    "train": 0, "val": 1_000_000, "testA": 2_000_000, "testB": 3_000_000, "testC": 4_000_000, "test": 5_000_000,
}  # fmt: skip
# The place in this list decides which scenes a layout has: append only.
LAYOUTS = (
    "ade20k", "coco", "cityscapes", "refer", "reason", "mapillary", "openimage", "pascal_part", "pascal_context",
    "pascal_voc", "refclef", "refcoco+", "refcocog",
    "own",
)  # fmt: skip
INDICES_PER_LAYOUT = 1_000_000
MAX_TRIES = 400  # for each scene wanted, before giving up on finding one that fits


def scene_key(seed: int, split: str, layout: str, k: int) -> tuple[int, int]:
    """The arguments of `draw_scene` for candidate `k` of a layout's split.

    Two different (split, layout, k) never give the same key: the split chooses the seed, `seed` itself for
    train, seed + 1,000,000 for val; the layout chooses a range of a million indices.
    """
    if not 0 <= k < INDICES_PER_LAYOUT:
        raise ValueError(f"k must be in 0..{INDICES_PER_LAYOUT - 1}, got {k}")
    return seed + SEED_OF_SPLIT[split], LAYOUTS.index(layout) * INDICES_PER_LAYOUT + k


@dataclass(frozen=True)
class Drawn:
    """A scene of a world, its number in its split (from 0), and the generator for what is said about it."""

    number: int
    scene: Scene
    rng: np.random.Generator


@dataclass(frozen=True)
class SceneSource:
    """The scenes of one world; `num_train` and `num_val` are those of each layout."""

    seed: int
    num_train: int
    num_val: int

    def scenes(self, layout: str, split: str, fits: Callable[[Scene], bool] | None = None) -> Iterator[Drawn]:
        """The first scenes of a layout's split, or the first that fit. The tests are as long as val."""
        wanted = self.num_train if split == "train" else self.num_val
        number = 0
        for k in count():
            if number == wanted:
                return
            if k > MAX_TRIES * wanted:
                raise UserError(f"only {number} of {wanted} scenes fit {layout} {split} in {k} tries")
            key = scene_key(self.seed, split, layout, k)
            scene = draw_scene(*key)
            if fits is None or fits(scene):
                yield Drawn(number, scene, np.random.default_rng((*key, 2)))
                number += 1


def write_jpg(path: Path, image: np.ndarray) -> None:
    """Write (height, width, 3) uint8 RGB as JPEG, with colour at full resolution."""
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (height, width) or (height, width, 3) uint8 as PNG; lightly compressed, as many are written."""
    Image.fromarray(pixels).save(path, compress_level=1)


def write_palette_png(path: Path, values: np.ndarray) -> None:
    """Write (height, width) uint8 as PNG whose values are indices into a palette."""
    picture = Image.fromarray(values)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(path, compress_level=1)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in UTF-8, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def folder(path: Path) -> Path:
    """The folder, made if it is not there."""
    path.mkdir(parents=True, exist_ok=True)
    return path
