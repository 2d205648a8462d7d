"""Predictions as files for other programs (`--save_predictions FOLDER`).

    FOLDER/STEM/IMAGE.png    semantic data: a label image of the image's size with the values of the data set's own
                             label files, which the official servers take; FOLDER/STEM_ids.txt lists them
    FOLDER/STEM.json         referring, generalized and reasoning: COCO's results format, a list of {"image_id",
                             "file_name", "number", "question", "answer", "segmentation", "category_id", "score"};
                             the segmentation is a run-length code, the last two are 1 as there is one category;
                             questions with answers in text: the same up to "answer"

    FOLDER/STEM_maps/IMAGE_map_1_CLASS.png, IMAGE_0_map_1.png
                             with --save_maps the similarity map of each [SEG] over the image: of a class, or of the
                             masks of question 0; "maps" of an entry lists its files

STEM is the entry of --val_dataset_list as a file name. `image_id` is the number at the end of a COCO file name, else
the name without its suffix; `number` counts the questions about an image.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from model.outputs import SimilarityMaps
from utils.common.files import write_png, write_whole, written_aside
from utils.common.label_values import IGNORE, NOTHING
from utils.common.paths import file_suffix
from utils.data.base import Dataset
from utils.data.registry import DATASETS
from utils.data.semantic import SemanticDataset
from utils.data.types import (
    EvalSample,
    MultiTargetSample,
    ReasonSample,
    ReferringSample,
    SemanticSample,
)
from utils.evaluation.maps import write_heat_maps

PredictionEntry = dict[str, Any]


class PredictionWriter:
    """The files of one data set. Label images are written at once, the JSON file when all processes have finished."""

    def __init__(
        self, folder: Path, stem: str, dataset: Dataset | Sequence[EvalSample], *, maps: bool = False
    ) -> None:
        self.folder = folder
        self.stem = stem
        self.dataset = dataset
        self.maps = maps
        self._table: np.ndarray | None = None

    def add(self, sample: EvalSample, prediction: Any) -> tuple[PredictionEntry, ...]:
        """Write a label image, or return the entries for the JSON file."""
        if isinstance(sample, SemanticSample):
            self._write_labels(sample, prediction.labels)
            if self.maps:
                present = [sample.classes[class_id] for class_id in prediction.answered_present]
                self._write_maps(sample, prediction.maps, "_map_", present)
            return ()
        if isinstance(sample, ReferringSample):
            questions, answers = sample.expressions, prediction
        elif isinstance(sample, MultiTargetSample):
            questions, answers = sample.questions, prediction
        elif isinstance(sample, ReasonSample):
            questions, answers = (sample.question,), [prediction]
        else:
            return ({**about(sample.source, 0, sample.question), "answer": prediction},)
        return tuple(
            {
                **about(sample.source, number, question),
                "answer": answer.text,
                "segmentation": run_lengths(answer.mask),
                "category_id": 1,
                "score": 1.0,
                **self._maps_of(sample, number, answer),
            }
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
        )

    def _maps_of(self, sample: EvalSample, number: int, answer: Any) -> PredictionEntry:
        """The entry's "maps" for one question, if they are asked for."""
        if not self.maps:
            return {}
        names = [""] * (0 if answer.maps is None else len(answer.maps.logits))
        return {"maps": self._write_maps(sample, answer.maps, f"_{number}_map_", names)}

    def _write_maps(
        self, sample: EvalSample, maps: SimilarityMaps | None, ending: str, names: Sequence[str]
    ) -> list[str]:
        """Write similarity maps; returns their paths below the folder.

        Args:
            names: of each map, "" for none.
        """
        if maps is None:
            return []
        start = Path(f"{self.stem}_maps") / self._name(sample.source).with_suffix("")
        written = [
            f"{start}{ending}{number}{file_suffix(name)}.png" for number, name in enumerate(names, start=1)
        ]
        write_heat_maps(sample.image, maps, [self.folder / path for path in written])
        return written

    def finish(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write the JSON file, entry by entry, in the order of the samples; none without entries."""
        lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
        first = next(lines, None)
        if first is None:
            return
        with (
            written_aside(self.folder / f"{self.stem}.json") as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.write(f"[\n{first}")
            for line in lines:
                file.write(f",\n{line}")
            file.write("\n]\n")

    def _write_labels(self, sample: SemanticSample, labels: np.ndarray) -> None:
        if self._table is None:
            self._table = label_values(self.dataset, len(sample.classes))
            self._write_ids(sample.classes)
        path = self.folder / self.stem / self._name(sample.source)
        write_png(path, Image.fromarray(self._table[labels]))  # UNCLAIMED is -1, the table's last entry

    def _name(self, source: str) -> Path:
        """Official data: the file name alone. Own data: with its folders, since names may repeat in them."""
        path = Path(source)
        if getattr(self.dataset, "name", "") in DATASETS:
            return Path(f"{path.stem}.png")
        root = getattr(self.dataset, "dataset_dir", path.parent)
        parts = [part for part in Path(os.path.relpath(path, root)).parts if part != ".."]
        return Path(*parts).with_suffix(".png")

    def _write_ids(self, classes: Sequence[str]) -> None:
        assert self._table is not None
        names = [*classes, "(none of them)"]
        lines = [f"{value}\t{name}\n" for value, name in zip(self._table.tolist(), names, strict=True)]
        write_whole(self.folder / f"{self.stem}_ids.txt", "".join(lines))


def label_values(dataset: Dataset | Sequence[EvalSample], num_classes: int) -> np.ndarray:
    """(num_classes + 1,) uint8 or uint16: the value of each class in a label image, and at the end that of no class.

    These are the values of the data set's own label files: ADE20K 1..150 and 0, Cityscapes labelIds and 0, COCO-Stuff
    0..181 and 255, Mapillary indices of the configuration's list and the last one that is not evaluated (0 is a class
    there). For data without label images the class index, and 255 (65535 from 256 classes on) for no class.
    """
    if not isinstance(dataset, SemanticDataset):
        values = np.append(np.arange(num_classes), 255 if num_classes <= 255 else 65535)
    else:
        table = np.asarray(dataset.id_table)
        found, first = np.unique(table, return_index=True)
        value_of = dict(zip(found.tolist(), first.tolist(), strict=True))
        values = np.array([*(value_of[class_id] for class_id in range(num_classes)), _no_class(table)])
    return values.astype(np.uint8 if values.max() <= 255 else np.uint16)


def _no_class(table: np.ndarray) -> int:
    """The value of a pixel that no mask claims."""
    nothing, ignored = np.flatnonzero(table == NOTHING), np.flatnonzero(table == IGNORE)
    if len(nothing):
        return int(nothing[0])
    for usual in (0, 255):
        if usual in ignored:
            return usual
    return int(ignored[-1]) if len(ignored) else len(table) - 1


def about(source: str, number: int, question: str) -> PredictionEntry:
    """The fields of an entry that identify its question."""
    path = Path(source)
    digits = re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", path.stem)  # COCO's file names
    return {
        "image_id": int(digits[1]) if digits else path.stem,
        "file_name": path.name,
        "number": number,
        "question": question,
    }


def run_lengths(mask: np.ndarray) -> PredictionEntry:
    """(height, width) bool -> {"size": [height, width], "counts": text}, COCO's compressed run-length code."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
