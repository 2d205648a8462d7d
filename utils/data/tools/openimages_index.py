"""`python -m utils.data.tools.openimages_index build-index`: the index of Open Images from the official CSV files."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.errors import UserError
from model.files import read_text
from utils.common.commands import command, script_parser
from utils.common.files import write_whole
from utils.common.paths import path_flag
from utils.common.terminal import printable
from utils.data.datasets.openimages import CATEGORIES, INDEX_FILE, NEGATIVES_FILE, ROOT, class_list
from utils.data.files import what_is_there

# File names in the releases V5 to V7; flags name other files.
CLASS_DESCRIPTIONS = (
    "class-descriptions-boxable.csv",
    "oidv7-class-descriptions-boxable.csv",
    "oidv6-class-descriptions.csv",
)
SEGMENTATIONS = ("train-annotations-object-segmentation.csv",)
IMAGE_LABELS = (
    "train-annotations-human-imagelabels-boxable.csv",
    "oidv7-train-annotations-human-imagelabels.csv",
    "oidv6-train-annotations-human-imagelabels.csv",
    "train-annotations-human-imagelabels.csv",
)

Index = dict[str, Any]  # {"categories": [names], image id: {name: [mask files]}}
Negatives = dict[str, list[str]]  # image id -> names


def build_index(
    class_descriptions: Path,
    segmentations: Path,
    image_labels: Path | None = None,
    *,
    show_progress: bool = True,
) -> tuple[Index, Negatives]:
    """The content of train_mask.json and train_negatives.json.

    Categories are the classes that have a mask, in lower case, in the order of `class_descriptions`. A class is
    negative in an image of the index when people verified it there with confidence 0 (`image_labels`).
    Source: https://storage.googleapis.com/openimages/web/download_v7.html, "Data formats".
    Raises UserError naming file and line for a malformed file.
    """
    names = read_class_names(class_descriptions)
    index: Index = {CATEGORIES: []}
    used = set()
    for line, row in read_rows(segmentations, ("MaskPath", "ImageID", "LabelName"), show_progress):
        if row["LabelName"] not in names:
            raise UserError(
                f"{segmentations}, line {line}: {row['LabelName']} is not in {class_descriptions}"
            )
        name = names[row["LabelName"]]
        used.add(name)
        # The archives train-masks-0 to train-masks-f hold the files by their first character.
        files = index.setdefault(row["ImageID"], {}).setdefault(name, [])
        files.append(f"{row['MaskPath'][:1]}/{row['MaskPath']}")
    index[CATEGORIES] = list(dict.fromkeys(name for name in names.values() if name in used))
    if not used:
        raise UserError(f"{segmentations}: no masks in it")
    class_list([name for label, name in names.items() if name in used], class_descriptions)  # no name twice
    if image_labels is None:
        return index, {}
    return index, read_negatives(image_labels, index, names, show_progress)


def read_negatives(
    path: Path, index: Mapping[str, Any], names: Mapping[str, str], show_progress: bool
) -> Negatives:
    """The categories that people looked for in an image of the index and did not find."""
    categories = set(index[CATEGORIES])
    negatives: dict[str, list[str]] = defaultdict(list)
    for line, row in read_rows(path, ("ImageID", "LabelName", "Confidence"), show_progress):
        name = names.get(row["LabelName"])
        if name is None or name not in categories or row["ImageID"] not in index:
            continue
        try:
            is_absent = float(row["Confidence"]) == 0
        except (TypeError, ValueError):
            raise UserError(
                f"{path}, line {line}: Confidence {row['Confidence']!r} is not a number"
            ) from None
        if is_absent and name not in index[row["ImageID"]] and name not in negatives[row["ImageID"]]:
            negatives[row["ImageID"]].append(name)
    return {image_id: found for image_id, found in negatives.items() if found}


def read_class_names(path: Path) -> dict[str, str]:
    """LabelName ("/m/011k07") -> name in lower case; the older releases' file has no header."""
    names = {}
    for line, row in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), start=1):
        if line == 1 and row[:1] == ["LabelName"]:
            continue
        if len(row) < 2 or not row[1].strip():
            raise UserError(f"{path}, line {line}: needs a label and its name, got {','.join(row)!r}")
        names[row[0]] = " ".join(row[1].lower().split())
    return names


def read_rows(
    path: Path, columns: Sequence[str], show_progress: bool
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, row) of a CSV file with a header, with a progress bar of the bytes read."""
    with (
        path.open("rb") as raw,
        tqdm(
            total=path.stat().st_size,
            desc=printable(path.name),
            unit="B",
            unit_scale=True,
            disable=not show_progress,
        ) as bar,
    ):

        def lines() -> Iterator[str]:
            for line in raw:
                bar.update(len(line))
                try:
                    yield line.decode("utf-8-sig")
                except UnicodeDecodeError as problem:
                    raise UserError(f"{path} is not UTF-8 ({problem}); download it again") from None

        reader = csv.DictReader(lines())
        try:
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ())}"
                )
            for row in reader:
                if any(not row[column] for column in columns):
                    raise UserError(
                        f"{path}, line {reader.line_num}: a column of {', '.join(columns)} is empty"
                    )
                yield reader.line_num, row
        except csv.Error as problem:
            raise UserError(f"{path}, line {reader.line_num}: not CSV ({problem})") from None


def find_csv(root: Path, names: Sequence[str], given: Path | None, flag: str) -> Path | None:
    """The file of a flag, or the first of `names` in `root` or `root`/annotations, or None."""
    if given is not None:
        if not given.is_file():
            raise FileNotFoundError(f"{flag} {given} is not there; {what_is_there(given)}")
        return given
    candidates = [folder / name for name in names for folder in (root, root / "annotations")]
    return next((path for path in candidates if path.is_file()), None)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(content))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("utils.data.tools.openimages_index", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build-index", help=f"write {INDEX_FILE} and {NEGATIVES_FILE}")
    build.add_argument(
        "--dataset_dir", type=path_flag, required=True, help=f"root of the data sets, with {ROOT}/ in it"
    )
    for flag, names in (
        ("class_descriptions", CLASS_DESCRIPTIONS),
        ("segmentations", SEGMENTATIONS),
        ("image_labels", IMAGE_LABELS),
    ):
        build.add_argument(
            f"--{flag}", type=path_flag, help=f"CSV file; otherwise looked for: {' or '.join(names)}"
        )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> str:
    """Build and write the index; returns a summary of one line."""
    root: Path = args.dataset_dir / ROOT
    if not root.is_dir():
        raise FileNotFoundError(f"--dataset_dir {args.dataset_dir} has no {ROOT}; {what_is_there(root)}")
    found = {
        flag: find_csv(root, names, getattr(args, flag), f"--{flag}")
        for flag, names in (
            ("class_descriptions", CLASS_DESCRIPTIONS),
            ("segmentations", SEGMENTATIONS),
            ("image_labels", IMAGE_LABELS),
        )
    }
    required: list[Path] = []
    for flag, names in (("class_descriptions", CLASS_DESCRIPTIONS), ("segmentations", SEGMENTATIONS)):
        if (path := found[flag]) is None:
            raise FileNotFoundError(
                f"build-index needs {root / names[0]} (or --{flag} FILE); {what_is_there(root / names[0])}"
            )
        required.append(path)
    class_descriptions, segmentations = required
    index, negatives = build_index(class_descriptions, segmentations, found["image_labels"])
    write_json(root / INDEX_FILE, index)
    if found["image_labels"] is not None:
        write_json(root / NEGATIVES_FILE, negatives)
        absent = f"{sum(map(len, negatives.values()))} verified absences"
    else:
        absent = f"no {IMAGE_LABELS[0]}, so no class is known to be absent"
    return f"{root / INDEX_FILE}: {len(index) - 1} images, {len(index[CATEGORIES])} classes, {absent}"


@command("utils.data.tools.openimages_index")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after an error of the user in one line."""
    args = parse_arguments(argv)
    print(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
