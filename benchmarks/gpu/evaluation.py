"""A whole evaluation as test_sem.py runs it, on images in ADE20K's layout: files in, report out."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gpu.answers import NUM_PRESENT, about_present
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from utils.data.class_lists import load_class_list
from utils.evaluation.evaluate import evaluate_entries
from utils.evaluation.prompting import EvaluationSettings
from utils.toy.world import WorldConfig, make_world

SIZE, TINY_SIZE = (640, 480), (96, 72)  # width and height; ADE20K's images have 683x512 in the median
NUM_IMAGES, TINY_NUM_IMAGES = 48, 4
IN_FLIGHT, WORKERS = 2, 4


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "evaluation"."""
    number = TINY_NUM_IMAGES if machine.tiny else NUM_IMAGES
    names = load_class_list("ade20k")
    settings = EvaluationSettings(
        val_batch_size=IN_FLIGHT, workers=0 if machine.tiny else WORKERS, num_sheet_rows=0,
        max_samples=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gpu-evaluation-") as place:
        folder = Path(place)
        image = make_images(folder, number, TINY_SIZE if machine.tiny else SIZE)
        model = machine.model
        with about_present(model, image, names, NUM_PRESENT):
            report = evaluate_entries(
                model, model.processor, ["ade20k"], folder, settings, name="random", show_progress=False
            )
    [result] = report.results
    results.add("evaluation", f"ADE20K's 150 classes, {IN_FLIGHT} images in flight, images/s",
                result.num_samples / result.seconds)  # fmt: skip


def make_images(folder: Path, number: int, size: tuple[int, int]) -> np.ndarray:
    """Toy scenes in ADE20K's layout, enlarged to `size`; returns one of the images."""
    make_world(WorldConfig(out=str(folder), num_images=4, num_val=number, layouts="ade20k"))
    shutil.rmtree(folder / "ade20k" / "images" / "training")
    shutil.rmtree(folder / "ade20k" / "annotations" / "training")
    shown = None
    for path in sorted((folder / "ade20k").rglob("*")):
        if path.suffix in (".jpg", ".png"):
            is_label = path.suffix == ".png"
            resized = Image.open(path).resize(
                size, Image.Resampling.NEAREST if is_label else Image.Resampling.BICUBIC
            )
            resized.save(path)
            shown = shown if is_label else np.asarray(resized.convert("RGB"))
    assert shown is not None, "the toy world has images"
    return shown
