"""The files of a training run, missing, cut off, of another kind, of another run: for resume, merge and test_sem."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.attack.desk import Attack, Desk, evaluate, merge, train, write_image

KIND = "files of a run"
RUN, OTHER = "sound_run", "other_run"  # beside the sound model; the second has another seed
DATA = "sound_data"
SAVE = "ckpt_model/global_step1"
OF_WEIGHTS = (  # what a resume, the merge and test_sem read
    "ckpt_model", SAVE, f"{SAVE}/manifest.json", f"{SAVE}/mp_rank_00_model_states.pt",
    f"{SAVE}/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "ckpt_model/latest", "ckpt_model/lasagna",
    "ckpt_model/lasagna/run.yaml", "ckpt_model/lasagna/config.json",
)  # fmt: skip
OF_RESUME = (  # what only a resume reads or writes
    "run.lock", "losses.jsonl", "validation.json", "data.json", "ckpt_best", "ckpt_best/latest",
    "ckpt_best/global_step1", "ckpt_best/global_step1/manifest.json",
    "ckpt_best/global_step1/mp_rank_00_model_states.pt", "ckpt_best/lasagna",
)  # fmt: skip


def flags(folder: Path) -> tuple[str, ...]:
    """Of a run of one step on the data beside the models in `folder`."""
    own = f"own_sem:{folder / DATA}"
    return (f"--dataset={own}", f"--val_dataset_list={own}|val", "--no_eval=false", "--max_val_samples=1",
            "--zero_stage=2", "--precision=bf16", "--report_to=none")  # fmt: skip


def write(folder: Path) -> None:
    """Two runs that the attacks begin with, and their data."""
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / DATA / split / part).mkdir(parents=True)
        write_image(folder / DATA / split / "images/a.png")
        Image.new("L", (40, 30), 1).save(folder / DATA / split / "labels/a.png")
    (folder / DATA / "classes.txt").write_text("ignore\ndog\n")
    for number, name in enumerate((RUN, OTHER)):
        more = (f"--log_base_dir={folder}", f"--exp_name={name}", f"--seed={number}")
        assert train(*flags(folder), *more) == 0


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b"{"
    path.write_bytes(content[: len(content) * 2 // 3])


def _text(text: str, path: Path) -> None:
    path.write_text(text)


def _replaced(make: Callable[[Path], object], path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": partial(_replaced, lambda path: None),
    "empty": _empty,
    "cut off": _cut,
    "a list": partial(_text, "[1]"),
    "nested": partial(_text, "[" * 100_000),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40) and None,
    "a folder": partial(_replaced, lambda path: path.mkdir()),
    "a pipe": partial(_replaced, os.mkfifo),
    "a link to itself": partial(_replaced, lambda path: path.symlink_to(path.name)),
    "a link to /dev/zero": partial(_replaced, lambda path: path.symlink_to("/dev/zero")),
}
ONLY_FILES = ("empty", "cut off", "a list", "nested", "noise")


def _damaged(name: str, damage: str, command: str, desk: Desk) -> int:
    """One of the files, damaged; what is missing in the sound run is put there."""
    around = desk.model.parent
    run = desk.here / "runs" / "x"
    shutil.copytree(around / RUN, run, symlinks=True)
    if damage == "of another run":
        _take(around / OTHER / name, run / name)
    else:
        DAMAGES[damage](run / name)
    if command == "resume":
        return train(*flags(around), "--exp_name=x", "--epochs=2", "--disk_patience=0")
    if command == "merge":
        return merge("runs/x")
    return evaluate("runs/x/ckpt_model", f"own_sem:{around / DATA}|val")


def _take(other: Path, path: Path) -> None:
    if other.is_dir():
        shutil.rmtree(path)
        shutil.copytree(other, path)
    elif other.exists():
        shutil.copy(other, path)


def attacks() -> Iterator[Attack]:
    for name in (*OF_WEIGHTS, *OF_RESUME):
        is_folder = "." not in Path(name).name and Path(name).name != "latest"
        for damage in (*DAMAGES, "of another run"):
            if is_folder and damage in ONLY_FILES:
                continue
            for command in ("resume", "merge", "test_sem") if name in OF_WEIGHTS else ("resume",):
                quick = (name, damage, command) == (OF_RESUME[1], "a pipe", "resume")
                yield Attack(
                    KIND, f"{name}, {damage}, {command}", partial(_damaged, name, damage, command), quick
                )
