"""The files of an answer: a PNG of each mask, cut-outs, the overlay with its legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from model.exports import FoundMask
from utils.common.files import write_png
from utils.common.paths import file_suffix, shortened, writable_folder
from utils.evaluation.maps import write_heat_maps
from utils.evaluation.metrics import label_map
from utils.reports.colours import MASK_COLOURS, Colour, class_colour
from utils.reports.drawing import LegendEntry, annotate
from utils.serving.answers import Answer

MAX_STEM_BYTES = 120  # of a file name, which holds 255


@dataclass(kw_only=True)
class WrittenFiles:
    """Where the files of one answer are."""

    overlay: Path
    masks: list[Path] = field(default_factory=list)
    cutouts: list[Path | None] = field(
        default_factory=list
    )  # one for each mask if wanted; None without pixels
    maps: list[Path] = field(default_factory=list)  # one for each mask if wanted


def write_files(
    answer: Answer,
    found: Sequence[FoundMask],
    image: np.ndarray,
    stem: str,
    folder: str | Path,
    *,
    cutouts: bool = False,
    maps: bool = False,
) -> tuple[WrittenFiles, Image.Image]:
    """Writes FOLDER/STEM_mask_1_NAME.png and so on; returns the paths, and the overlay as an image.

    Args:
        found: the masks to write, whole or as instances.
        image: (height, width, 3) uint8.
        stem: may hold folders.
        cutouts: also STEM_cutout_1_NAME.png, what a mask covers, cut to its box.
        maps: also STEM_map_1_NAME.png, the similarity map of a [SEG] over the image, where the answer has them.
    """
    folder = writable_folder(folder, "--vis_save_path")
    place, name = folder / Path(stem).parent, shortened(Path(stem).name, MAX_STEM_BYTES)
    place.mkdir(parents=True, exist_ok=True)
    written = WrittenFiles(overlay=place / f"{name}_overlay.png")
    for number, mask in enumerate(found, start=1):
        ending = f"{number}{file_suffix(mask.label)}.png"
        written.masks.append(place / f"{name}_mask_{ending}")
        write_png(written.masks[-1], mask.image())
        if cutouts:
            path = place / f"{name}_cutout_{ending}" if mask.area else None
            if path is not None:
                write_png(path, cutout(image, mask))
            written.cutouts.append(path)
    if maps and answer.maps is not None:
        written.maps = write_maps(answer, found, image, place / f"{name}_map_")
    overlay = draw(answer, image)
    write_png(written.overlay, overlay)
    return written, overlay


def write_maps(answer: Answer, found: Sequence[FoundMask], image: np.ndarray, start: Path) -> list[Path]:
    """Write the similarity map of each [SEG]; returns that of each mask: instances of one [SEG] share it.

    Args:
        start: what the paths begin with.
    """
    assert answer.maps is not None
    paths = [
        start.with_name(f"{start.name}{number}{file_suffix(label)}.png")
        for number, label in enumerate(answer.names, start=1)
    ]
    write_heat_maps(image, answer.maps, paths)
    return [paths[mask.index] for mask in found]


def cutout(image: np.ndarray, mask: FoundMask) -> Image.Image:
    """What a mask covers, cut to its box: RGBA, transparent outside the mask."""
    left, top, width, height = mask.box
    window = np.s_[top : top + height, left : left + width]
    alpha = mask.pixels[window].astype(np.uint8) * 255
    return Image.fromarray(np.dstack([image[window], alpha]))


def draw(answer: Answer, image: np.ndarray) -> Image.Image:
    """The image with all masks and a legend; where masks overlap the highest logit is shown."""
    colours = [colour_of(name, number) for number, name in enumerate(answer.names)]
    legend = [LegendEntry(name=answer.question)] if answer.question else []
    legend += [
        LegendEntry(
            name=name or f"mask {number + 1}",
            colour=colour,
            note="" if probability is None else f"{probability:.2f}",
        )
        for number, ((name, probability), colour) in enumerate(
            zip(answer.labels_and_probabilities(), colours, strict=True)
        )
    ]
    if not answer.names:
        what = "no mask could be attributed to a class" if answer.remark else "nothing was segmented"
        legend.append(LegendEntry(name=what, pale=True))
    if answer.absent:
        legend.append(LegendEntry(name="not in the image: " + ", ".join(answer.absent), pale=True))
    labels = label_map(answer.masks, range(len(answer.masks)))
    return annotate(image, labels, np.array(colours, dtype=np.uint8).reshape(-1, 3), legend)


def colour_of(name: str, number: int) -> Colour:
    """That of the class; of a mask without a name, by its number."""
    return class_colour(name) if name else MASK_COLOURS[number % len(MASK_COLOURS)]
