"""Counting masks into a confusion matrix, ours against the dense way of the released evaluation.

    python -m benchmarks.metrics                      # prints a Markdown table, writes runs/benchmarks/metrics.json
    python -m benchmarks.metrics --cases 640x480x150,640x480x459 --num_masks 10

One image: the mask logits that a model predicted, with their classes, and the label image. The dense way puts the
masks into an array (classes, height, width), takes its arg-max and counts pairs of classes in a histogram. Ours puts
them into a label map by a running maximum and counts that. Ways alternate; time is the median of CPU time of this
process with one thread, ratios are medians over the rounds. Memory is the peak growth of a process while it counts
one image (Linux only); inputs are allocated before.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import script_parser
from benchmarks.measure import RESET, STATUS, resident, take_turns, write_json
from utils.common.label_values import IGNORE
from utils.evaluation.metrics import ConfusionMatrix, label_map

# Bars: speed-up, and fraction of the dense way's memory.
GOAL_SPEED, GOAL_MEMORY = 50, 1 / 20
GOAL_MASKS = 10  # for as many masks as an image of ADE20K has classes; more of them take longer to read
CASES = "640x480x150,2048x1024x150,640x480x459"
IGNORED_SHARE = 0.05
M_MMAP_THRESHOLD = -3  # of mallopt


class Scene(NamedTuple):
    """The masks of one image and its ground truth."""

    masks: Tensor  # (num_masks, height, width) float32 logits
    class_ids: list[int]  # of the masks
    truth: np.ndarray  # (height, width) uint16, IGNORE where nothing is counted
    num_classes: int


def make_scene(height: int, width: int, num_classes: int, num_masks: int, *, seed: int = 0) -> Scene:
    """Smooth random masks that overlap, like those of a mask decoder, and ground truth that mostly agrees."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    coarse = torch.randn(1, num_masks, max(height // 40, 2), max(width // 40, 2), generator=generator)
    masks = F.interpolate(coarse * 4, size=(height, width), mode="bilinear")[0].contiguous()
    class_ids = rng.choice(num_classes, size=num_masks, replace=False).tolist()
    truth = np.array(class_ids)[masks.argmax(dim=0).numpy()].astype(np.uint16)
    truth[rng.random(truth.shape) < IGNORED_SHARE] = IGNORE
    return Scene(masks=masks, class_ids=class_ids, truth=truth, num_classes=num_classes)


def dense(scene: Scene) -> np.ndarray:
    """(num_classes, num_classes) pixels by true and predicted class, the plain way.

    As in the released code, a pixel that no mask claims counts as the first class.
    """
    planes = torch.zeros(scene.num_classes, *scene.masks.shape[1:])
    for logits, class_id in zip(scene.masks, scene.class_ids, strict=True):
        planes[class_id] = logits.clamp(min=0)
    predicted = planes.max(dim=0)[1].numpy()
    judged = scene.truth != IGNORE
    pairs = scene.truth[judged].astype(np.int64) * scene.num_classes + predicted[judged]
    counts = np.bincount(pairs, minlength=scene.num_classes**2)
    return counts.reshape(scene.num_classes, scene.num_classes)


def ours(scene: Scene) -> np.ndarray:
    """(num_classes + 1, num_classes + 1) pixels, the last row and column for pixels without a class or a mask."""
    matrix = ConfusionMatrix(scene.num_classes)
    matrix.add(scene.truth, label_map(scene.masks, scene.class_ids))
    return matrix.counts


WAYS: dict[str, Callable[[Scene], np.ndarray]] = {"dense": dense, "ours": ours}


def measure(scene: Scene, rounds: int) -> dict[str, dict[str, float | None]]:
    """Milliseconds and peak megabytes of each way, and how they compare to the dense one."""
    peaks = {way: peak_bytes(count, scene) for way, count in WAYS.items()}
    runs = take_turns(
        {way: partial(count, scene) for way, count in WAYS.items()}, rounds, warm_up=1, memory=False
    )
    results: dict[str, dict[str, float | None]] = {}
    for way, run in runs.items():
        peak, most = peaks[way], peaks["dense"]
        results[way] = {
            "milliseconds": run.median * 1e3,
            "times_faster": run.times_faster(runs["dense"]),
            "megabytes": None if peak is None else peak / 1e6,
            "share_of_memory": None if peak is None or not most else peak / most,
        }
    return results


def peak_bytes(count: Callable[[Scene], np.ndarray], scene: Scene) -> int | None:
    """Peak growth of a separate process while it counts, in bytes; None where the system does not report it."""
    if not STATUS.exists():
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(count, scene, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _report_peak(count: Callable[[Scene], np.ndarray], scene: Scene, sender: Connection) -> None:
    count(make_scene(64, 64, 2, 2))  # first call: loads libraries
    # Reuse of freed memory would go unnoticed: release it, and give large arrays their own pages.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)
    RESET.write_text("5")  # resets the peak
    before = resident("VmRSS")
    count(scene)
    sender.send(max(resident("VmHWM") - before, 1))


def to_table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, with the bars."""
    lines = [
        "| image | classes | masks | way | ms | times faster | goal | MB at most | of dense | goal |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for way, numbers in result["ways"].items():
            has_goal = way == "ours" and result["num_masks"] <= GOAL_MASKS
            goals = (f">= {GOAL_SPEED}", f"<= {GOAL_MEMORY}") if has_goal else ("", "")
            lines.append(
                f"| {result['size']} | {result['num_classes']} | {result['num_masks']} | {way} | "
                f"{_show(numbers['milliseconds'], 2)} | {_show(numbers['times_faster'], 1)} | {goals[0]} | "
                f"{_show(numbers['megabytes'], 1)} | {_show(numbers['share_of_memory'], 4)} | {goals[1]} |"
            )
    return "\n".join(lines)


def _show(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.metrics", __doc__)
    parser.add_argument("--cases", default=CASES, help="WIDTHxHEIGHTxCLASSES, separated by commas")
    parser.add_argument(
        "--num_masks", default="10,30", help="predicted masks of the image, each a case of its own"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds over which medians are taken")
    parser.add_argument("--out", default="runs/benchmarks/metrics.json", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    results = []
    for case in arguments.cases.split(","):
        width, height, num_classes = (int(number) for number in case.split("x"))
        for num_masks in (int(number) for number in arguments.num_masks.split(",")):
            scene = make_scene(height, width, num_classes, min(num_masks, num_classes))
            about = {"size": f"{width}x{height}", "num_classes": num_classes, "num_masks": len(scene.masks)}
            results.append({**about, "ways": measure(scene, arguments.rounds)})
    print(to_table(results))
    settings = {**vars(arguments), "torch": torch.__version__, "numpy": np.__version__}
    write_json(arguments.out, {"settings": settings, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
