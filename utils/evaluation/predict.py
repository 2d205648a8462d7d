"""Images without ground truth: which classes are in them, and where.

    python test_sem.py --version FOLDER --images 'photos/*.jpg' --classes classes.txt --save_predictions out

    out/labels/NAME.png      class of each pixel: the line of the class file, counted from 0, as in own data; 255
                             (65535 where a class has the number 255 or more) where no mask is
    out/overlays/NAME.png    the masks drawn over the image, with a legend
    out/maps/NAME_map_1_CLASS.png
                             with --save_maps, where each [SEG] looks: its similarity map over the image
    out/predictions.json     {"model", "classes", "values", "no_class", "settings", "images": [{"file", "labels",
                             "overlay", "present": [{"class", "name", "probability", "pixels",
                             with --save_maps "map"}],
                             "unattributed": [...]}], "unreadable": [...]}; "values" has the line of each class,
                             "class" is one of them

Of a model that answers freely the probability is 0 or 1, as it gives none. "unattributed" lists what it called
the masks that name none of the classes ("it is"): such masks are left out, and classes without a mask are unknown.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from model.outputs import SimilarityMaps
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from utils.common.files import write_png, write_whole
from utils.common.paths import file_suffix, matches
from utils.data.class_file import read_class_file
from utils.data.class_lists import CLASSES_DIR, ClassList, load_class_list
from utils.data.files import is_hidden, log_skipped
from utils.data.images import images_in, read_image
from utils.evaluation.batches import in_batches
from utils.evaluation.gather import gather, raise_everywhere, rank_and_world_size
from utils.evaluation.maps import write_heat_maps
from utils.evaluation.metrics import label_map
from utils.evaluation.model import SegmentationModel, evaluation_mode
from utils.evaluation.prompting import ROWS_PER_IMAGE, EvaluationSettings
from utils.reports.colours import class_colour, palette
from utils.reports.drawing import LegendEntry, annotate, resize_labels, shrunk_size

logger = logging.getLogger(__name__)

ONE_AT_A_TIME = "ask for one class at a time: --classes_per_query 1"
OVERLAY_SIDE = 1280  # longest side of an overlay; label images have the size of the image


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """What the model found in one image."""

    labels: np.ndarray  # (height, width) int16 class ids, UNCLAIMED where no mask is
    present: dict[int, float]  # class id -> probability, of the classes that are present
    unattributed: tuple[str, ...] = ()  # see `Segmentation.unattributed`
    maps: SimilarityMaps | None = None  # one for each of `present`, of a model with a spatial prompt


def find_images(pattern: str, flag: str = "--images") -> list[Path]:
    """The image files that match a pattern, or those of a folder, sorted. FileNotFoundError without any."""
    if Path(pattern).is_dir():
        found, others = images_in(Path(pattern))
        log_skipped(Path(pattern), [path for path, _ in others])
    elif Path(pattern).is_file():
        found = [Path(pattern)]
    else:
        matched = (Path(name) for name in matches(pattern))
        found = [path for path in matched if path.is_file() and not is_no_data(path)]
    if not found:
        raise FileNotFoundError(
            f"{flag} {pattern} matches no image; pass a file, a folder, or a pattern in quotes: 'photos/*.jpg'"
        )
    return found


def is_no_data(path: Path) -> bool:
    """Whether a match is hidden, or lies in a folder such as __MACOSX. Parts that begin with a dot were typed."""
    return is_hidden(path.name) or any(is_hidden(part) for part in path.parts if not part.startswith("."))


def classes_asked(name: str) -> tuple[ClassList, tuple[int, ...]]:
    """The classes of a text file, or of a shipped list by its name, and the label value of each.

    Raises FileNotFoundError, and UserError for a file that breaks the rules of utils/data/class_file.py.
    """
    shipped = sorted(path.stem for path in CLASSES_DIR.glob("*.txt") if not path.stem.endswith("_ids"))
    if name in shipped:
        classes = load_class_list(name)
        return classes, tuple(range(len(classes)))
    if not Path(name).is_file() or Path(name).suffix.lower() != ".txt":
        raise FileNotFoundError(
            f"--classes {name} is no .txt file; write one class a line into one, or take one of: {', '.join(shipped)}"
        )
    file = read_class_file(Path(name))
    return file.classes, file.values


def predict_images(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[Path],
    classes: ClassList,
    folder: Path,
    settings: EvaluationSettings,
    *,
    class_values: Sequence[int] | None = None,
    name: str = "",
    maps: bool = False,
    show_progress: bool = True,
) -> Path | None:
    """Predict images and write the files; an image that cannot be read is logged and listed.

    A collective call when several processes run; they share the images.

    Args:
        class_values: label value of each class; by default its index in `classes`.
        maps: also write the similarity maps of a spatial prompt.

    Returns:
        the path of predictions.json, on the first process.
    """
    settings = settings.for_model(model)
    settings.constrains(processor.format)  # thresholds need a model that knows probabilities
    rank, world_size = rank_and_world_size()
    names = output_names(images)
    values = values_written(class_values or range(len(classes)))
    mine = in_batches(range(len(images)), settings.val_batch_size)[rank::world_size]
    entries: dict[int, dict[str, Any]] = {}
    failure: Exception | None = None
    try:
        with (
            evaluation_mode(model),
            tqdm(total=sum(map(len, mine)), unit="image", disable=not show_progress or rank > 0) as bar,
        ):
            for batch in mine:
                readable = {index: image for index in batch if (image := _read(images[index])) is not None}
                found = predict_batch(model, processor, list(readable.values()), classes, settings)
                for (index, image), prediction in zip(readable.items(), found, strict=True):
                    entries[index] = _write(
                        image, prediction, classes, values, folder, names[index], maps=maps
                    )
                bar.update(len(batch))
    except Exception as problem:  # told to the other processes, which would wait for this one
        failure = problem
    raise_everywhere(failure)
    entries = gather(entries)
    if rank:
        return None
    tell_unattributed(entries, processor.format)
    content = {
        "model": name,
        "settings": settings.protocol(constrained=processor.format.answers_every_class),
        "classes": list(classes),
        "values": values[:-1].tolist(),
        "no_class": int(values[-1]),
        "images": [{"file": str(images[index]), **entries[index]} for index in sorted(entries)],
        "unreadable": [str(path) for index, path in enumerate(images) if index not in entries],
    }
    return write_whole(folder / "predictions.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def tell_unattributed(entries: Mapping[int, Mapping[str, Any]], format: SequenceFormat) -> None:
    """Warn once of masks that were left out because the answers do not say which class they are of."""
    affected = [entry["unattributed"] for _, entry in sorted(entries.items()) if entry["unattributed"]]
    if affected:
        words = dict.fromkeys(text for texts in affected for text in texts)
        logger.warning(
            "%d of %d images: masks could not be attributed to a class (%s) and are left out%s",
            len(affected),
            len(entries),
            ", ".join(map(repr, list(words)[:3])),
            "; " + ONE_AT_A_TIME if format.neg is None else "",
        )


def predict_batch(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    images: Sequence[np.ndarray],
    classes: Sequence[str],
    settings: EvaluationSettings,
) -> list[ImagePrediction]:
    """Ask every image for all classes. A long list takes several passes, so that memory does not grow with it."""
    if not images:
        return []
    at_once = settings.names_per_query(model) * ROWS_PER_IMAGE
    encoded = model.encode_batch(images, processor=processor)
    masks: list[list[torch.Tensor]] = [[] for _ in images]
    present: list[dict[int, float]] = [{} for _ in images]
    unattributed: list[tuple[str, ...]] = [() for _ in images]
    maps: list[list[SimilarityMaps | None]] = [[] for _ in images]
    for start in range(0, len(classes), at_once):
        answers = model.segment_batch(
            encoded,
            [classes[start : start + at_once]] * len(images),
            processor=processor,
            presence_threshold=settings.presence_threshold,
            rethreshold=settings.rethreshold,
            classes_per_query=settings.classes_per_query,
            match_distance=settings.match_distance,
        )
        for number, answer in enumerate(answers):
            masks[number].append(answer.masks)
            maps[number].append(answer.maps)
            unattributed[number] += answer.unattributed
            said = enumerate(zip(answer.present, answer.probabilities, strict=True), start)
            present[number] |= {
                class_id: probability for class_id, (is_there, probability) in said if is_there
            }
    return [
        ImagePrediction(
            labels=label_map(torch.cat(of_image), list(classes_there)),
            present=classes_there,
            unattributed=words,
            maps=SimilarityMaps.joined(maps_there),
        )
        for of_image, classes_there, words, maps_there in zip(masks, present, unattributed, maps, strict=True)
    ]


def values_written(class_values: Sequence[int]) -> np.ndarray:
    """(num_classes + 1,) uint8 or uint16: the value of each class in a label image, last that of no class."""
    no_class = 255 if max(class_values) < 255 else 65535
    return np.array([*class_values, no_class], dtype=np.uint8 if no_class == 255 else np.uint16)


def output_names(images: Sequence[Path]) -> list[str]:
    """A name without suffix for each image: its path below their common folder. No two are alike."""
    paths = [Path(os.path.abspath(path)) for path in images]
    root = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    uses = Counter(name.lower() for name in names)
    return [
        name if uses[name.lower()] == 1 else path.relative_to(root).as_posix()  # a.jpg beside a.png
        for name, path in zip(names, paths, strict=True)
    ]


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except (ValueError, OSError) as problem:
        logger.warning("left out: %s", problem)
        return None


def _write(
    image: np.ndarray,
    prediction: ImagePrediction,
    classes: ClassList,
    values: np.ndarray,
    folder: Path,
    name: str,
    *,
    maps: bool,
) -> dict[str, Any]:
    """Write the label image, the overlay and the maps of one image; returns its entry in predictions.json."""
    labels, present = prediction.labels, prediction.present
    files = {"labels": f"labels/{name}.png", "overlay": f"overlays/{name}.png"}
    write_png(folder / files["labels"], Image.fromarray(values[labels]))  # UNCLAIMED is -1, the last value
    pixels = np.bincount(labels[labels >= 0], minlength=len(classes))
    ranked = sorted(present, key=lambda class_id: (-pixels[class_id], class_id))
    legend = [
        LegendEntry(name=classes[k], colour=class_colour(classes[k]), note=f"{present[k]:.2f}")
        for k in ranked
    ]
    size = shrunk_size(image, OVERLAY_SIDE)
    small = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    overlay = annotate(small, resize_labels(labels, size), palette(classes), legend)
    write_png(folder / files["overlay"], overlay)
    map_of: dict[int, str] = {}
    if maps and prediction.maps is not None:
        map_of = {
            k: f"maps/{name}_map_{number}{file_suffix(classes[k])}.png"
            for number, k in enumerate(present, start=1)
        }
        write_heat_maps(image, prediction.maps, [folder / path for path in map_of.values()])
    return {
        **files,
        "present": [
            {
                "class": int(values[k]),
                "name": classes[k],
                "probability": present[k],
                "pixels": int(pixels[k]),
                **({"map": map_of[k]} if k in map_of else {}),
            }
            for k in ranked
        ],
        "unattributed": list(prediction.unattributed),
    }
