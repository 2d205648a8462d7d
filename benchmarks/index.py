"""Opening large annotation files, and what each further process costs.

    python -m benchmarks.index             # COCO's size and three others: some minutes, 2 GB of disk
    python -m benchmarks.index --quick     # a twentieth of it

Files of random polygons and words are made, with an empty file for each image. For each data set a fresh process
opens it three times: in memory, without a cache; for the first time with one; and once more. Seconds are CPU seconds,
so that other programs on the machine hardly matter. The memory of a process is its private part, resident minus
shared (/proc/PID/smaps_rollup), that opening the data set and drawing from it adds. A draw is the reading of a random
item, without its image.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import script_parser
from benchmarks.measure import write_json
from utils.data.base import Dataset
from utils.data.index.cache import OFF, use_index_cache
from utils.data.registry import parse_entry

NUM_DRAWS = 20_000
FIRST, LATER, MEGABYTES = 1.5, 2.0, 150  # bars: times json.load, seconds, MB of one more process
SIZES = {"own_coco": (118_287, 860_001), "refcoco": (20_000, 142_000), "paco_lvis": (57_000, 620_000),
         "llava_instruct_150k": (81_479, 157_000)}  # fmt: skip
QUICK = 20  # a --quick file has this part of it
POINTS = (5, 40)  # of a polygon
IMAGE = {
    "height": 480,
    "width": 640,
    "coco_url": "http://images.cocodataset.org/train2017/0.jpg",
    "license": 3,
}


def polygons(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Random polygons, [x0, y0, x1, y1, ...] with two decimals."""
    sizes = rng.integers(*POINTS, count) * 2
    numbers = np.round(rng.random(int(sizes.sum())) * 479, 2)
    return [part.tolist() for part in np.split(numbers, np.cumsum(sizes)[:-1])]


def write_coco(
    path: Path,
    num_images: int,
    num_annotations: int,
    num_classes: int,
    rng: np.random.Generator,
    folder: Path,
    inside: str = "",
) -> None:
    """A COCO instances file, and an empty file for each of its images."""
    names = [f"{number:012d}.jpg" for number in range(num_images)]
    touch(folder / inside, names)
    images = [{"id": number, "file_name": inside + name, **IMAGE} for number, name in enumerate(names)]
    categories = [{"id": number, "name": f"thing {number}:part"} for number in range(num_classes)]
    owners = rng.integers(num_images, size=num_annotations).tolist()
    classes = rng.integers(num_classes, size=num_annotations).tolist()
    drawn = polygons(rng, num_annotations)
    entries = zip(owners, classes, drawn, strict=True)
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "segmentation": [polygon], "area": 531.81,
         "iscrowd": 0, "bbox": [473.07, 395.93, 38.65, 28.67]}
        for number, (image, category, polygon) in enumerate(entries)
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")


def touch(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))


def make_own_coco(root: Path, num_images: int, num_entries: int, rng: np.random.Generator) -> Path:
    write_coco(root / "own/coco.json", num_images, num_entries, 80, rng, root / "own/images")
    return root / "own/coco.json"


def make_refcoco(root: Path, num_images: int, num_entries: int, rng: np.random.Generator) -> Path:
    """`num_entries` sentences, three a reference."""
    path = root / "refer_seg/refcoco/instances.json"
    folder = root / "refer_seg/images/mscoco/images/train2014"
    write_coco(path, num_images, 10 * num_images, 80, rng, folder)
    refs = [
        {
            "ref_id": number, "ann_id": annotation, "image_id": annotation_owner, "split": "train", "category_id": 1,
            "sentences": [{"sent": f"the {side} thing", "sent_id": 3 * number + k, "tokens": ["the", side, "thing"],
                           "raw": f"The {side} thing"} for k, side in enumerate(("left", "upper", "small"))],
            "sent_ids": [3 * number, 3 * number + 1, 3 * number + 2], "file_name": f"{number:012d}_{annotation}.jpg",
        }
        for number in range(num_entries // 3)
        for annotation, annotation_owner in [(number, number % num_images)]
    ]  # fmt: skip
    (path.parent / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return path


def make_paco_lvis(root: Path, num_images: int, num_entries: int, rng: np.random.Generator) -> Path:
    path = root / "vlpart/paco/annotations/paco_lvis_v1_train.json"
    write_coco(path, num_images, num_entries, 531, rng, root / "coco", "train2017/")
    return path


def make_llava_instruct_150k(root: Path, num_images: int, num_entries: int, rng: np.random.Generator) -> Path:
    """Dialogues of three questions, 230 MB for 157,000."""
    names = [f"{number:012d}.jpg" for number in range(num_images)]
    touch(root / "coco/train2017", names)
    question, answer = (
        "What is the colour of the bus in the image?\n<image>",
        "The bus is white and red. " * 14,
    )
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}] * 3
    content = [
        {"id": f"{k}", "image": names[k % num_images], "conversations": turns} for k in range(num_entries)
    ]
    path = root / "llava_dataset/llava_instruct_150k.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


MAKERS: dict[str, Callable[[Path, int, int, np.random.Generator], Path]] = {
    "own_coco": make_own_coco,
    "refcoco": make_refcoco,
    "paco_lvis": make_paco_lvis,
    "llava_instruct_150k": make_llava_instruct_150k,
}


def private_megabytes() -> float:
    """Resident minus shared memory of this process."""
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        name, size, _ = line.split()
        sizes[name] = int(size) / 1000
    return sizes["Rss:"] - sizes["Shared_Clean:"] - sizes["Shared_Dirty:"]


def items_of(dataset: Dataset) -> Sequence[Any]:
    items: Sequence[Any] = getattr(dataset, "dialogues", None) or getattr(dataset, "items")  # noqa: B009
    return items


def opened(entry: str, root: Path, place: str) -> dict[str, float]:
    """Seconds of opening, MB that it adds and draws/s, in this process."""
    use_index_cache(place)
    before, start = private_megabytes(), time.process_time()
    items = items_of(parse_entry(entry, "--dataset").open(root, training=True))
    seconds = time.process_time() - start
    indices = np.random.default_rng(0).integers(len(items), size=NUM_DRAWS).tolist()
    start = time.process_time()
    for index in indices:
        items[index]
    draws = NUM_DRAWS / (time.process_time() - start)
    return {"seconds": seconds, "megabytes": private_megabytes() - before, "draws": draws}


def load_json(path: Path) -> dict[str, float]:
    start = time.process_time()
    with path.open(encoding="utf-8") as file:
        content = json.load(file)
    return {"seconds": time.process_time() - start, "entries": float(len(content))}


def in_fresh_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What `work` returns, from a process that has done nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure(name: str, root: Path, part: int, *, in_memory: bool) -> dict[str, Any]:
    """One row of the table."""
    num_images, num_entries = (max(size // part, 4) for size in SIZES[name])
    path = MAKERS[name](root, num_images, num_entries, np.random.default_rng(0))
    entry = f"own_coco:{path}" if name == "own_coco" else name
    if name == "own_coco":
        entry += f"|images={root / 'own/images'}"
    row: dict[str, Any] = {"name": name, "megabytes": path.stat().st_size / 1e6}
    row["json"] = in_fresh_process(load_json, path)
    place = str(root / "cache")
    row["first"] = in_fresh_process(opened, entry, root, place)
    row["later"] = in_fresh_process(opened, entry, root, place)
    if in_memory:
        row["memory"] = in_fresh_process(opened, entry, root, OFF)
    return row


def to_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        f"| data set | file | json.load | first opening (<= {FIRST}x) | later (<= {LATER:g} s) | in memory "
        f"| one more process (<= {MEGABYTES} MB) | in memory | draws/s | in memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain = row.get("memory", dict.fromkeys(("seconds", "megabytes", "draws"), float("nan")))
        ratio = row["first"]["seconds"] / row["json"]["seconds"]
        lines.append(
            f"| {row['name']} | {row['megabytes']:.0f} MB | {row['json']['seconds']:.1f} s | "
            f"{row['first']['seconds']:.1f} s, {ratio:.2f}x | {row['later']['seconds']:.2f} s | "
            f"{plain['seconds']:.1f} s | {row['later']['megabytes']:.0f} MB | {plain['megabytes']:.0f} MB | "
            f"{row['later']['draws']:,.0f} | {plain['draws']:,.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("benchmarks.index", __doc__)
    parser.add_argument("--names", default=",".join(SIZES), help="data sets to measure")
    parser.add_argument("--quick", action="store_true", help=f"files of 1/{QUICK} of the size")
    parser.add_argument("--skip_memory", action="store_true", help="leave out what has no cache")
    parser.add_argument("--out", default="runs/benchmarks/index.json", help="JSON file to write")
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.names.split(","):
        root = Path(tempfile.mkdtemp())
        try:
            rows.append(
                measure(name, root, QUICK if arguments.quick else 1, in_memory=not arguments.skip_memory)
            )
        finally:
            shutil.rmtree(root)
        print(to_table(rows[-1:]), flush=True)
    print(to_table(rows))
    write_json(arguments.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
