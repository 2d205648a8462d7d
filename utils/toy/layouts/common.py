"""What the layout writers share: which scene goes where, and how images, labels and JSON are written."""

import io
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

# Each split has its own seed and each layout its own index range: no scene is drawn twice.
SEED_OF_SPLIT = {
    "train": 0, "val": 1_000_000, "testA": 2_000_000, "testB": 3_000_000, "testC": 4_000_000, "test": 5_000_000,
}  # fmt: skip
# The position in this list determines a layout's scenes: append only.
LAYOUTS = (
    "ade20k", "coco", "cityscapes", "refer", "reason", "mapillary", "openimage", "pascal_part", "pascal_context",
    "pascal_voc", "refclef", "refcoco+", "refcocog",
    "own", "llava_mix", "refzom", "muse", "lisa_plus",
)  # fmt: skip
INDICES_PER_LAYOUT = 1_000_000
MAX_TRIES = 400  # tries for each scene before giving up


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
    """A scene of a world, its number in its split (from 0), and the random generator of its texts."""

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
        """The first scenes of a layout's split, or the first that fit. Test splits are as long as val."""
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
    write_image(path, Image.fromarray(image), quality=95, subsampling=0)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (height, width) or (height, width, 3) uint8 as PNG; lightly compressed, for speed."""
    write_image(path, Image.fromarray(pixels), compress_level=1)


def write_palette_png(path: Path, values: np.ndarray) -> None:
    """Write (height, width) uint8 as PNG whose values are indices into a palette."""
    png = Image.fromarray(values)
    png.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    write_image(path, png, compress_level=1)


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image in the format of its suffix."""
    # In memory first: Pillow's own writer hides why a file cannot be written.
    stream = io.BytesIO()
    image.save(stream, Image.registered_extensions()[path.suffix], **options)
    path.write_bytes(stream.getvalue())


def write_json(path: Path, content: object) -> None:
    """Writes JSON in UTF-8; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def folder(path: Path) -> Path:
    """The folder, created if necessary."""
    path.mkdir(parents=True, exist_ok=True)
    return path
