"""Files that are none: pipes, sockets, devices, links, folders in the place of a file."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks import TOY
from benchmarks.attack.desk import (
    Attack,
    Desk,
    chat,
    check,
    coco,
    evaluate,
    load,
    train,
    write_image,
)
from benchmarks.attack.pickles import refer_data

SPECIAL = "files that are none"


def _special(make: Callable[[Path], None], place: str, command: str, desk: Desk) -> int:
    """A pipe, socket, device or folder in the place of a file of the data."""
    (desk.here / "mine").mkdir()
    folder = desk.here / "mine"
    for part in ("images", "labels"):
        (folder / part).mkdir()
    write_image(folder / "images/a.png")
    write_image(folder / "images/b.png")
    for name in ("a", "b"):
        Image.new("L", (40, 30), 1).save(folder / f"labels/{name}.png")
    (folder / "classes.txt").write_text("dog\ncat\n")
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(coco(["dog"], ["images/a.png", "images/b.png"])))
        line = {
            "image": "images/a.png",
            "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "[SEG]"}],
            "masks": ["labels/a.png"],
        }
        (folder / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    victim = folder / place
    victim.unlink()
    make(victim)
    if command == "chat":
        return chat(desk.model, image=str(victim))
    entry = {"json": "own_coco:./mine", "jsonl": "own_jsonl:./mine"}.get(
        place.split(".")[-1], "own_sem:./mine"
    )
    if place == "val.json":
        return evaluate(desk.model, entry)
    return check(entry) if command == "check" else evaluate(desk.model, entry)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


MAKERS: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/stdin": lambda path: path.symlink_to("/dev/stdin"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a folder": lambda path: path.mkdir(),
}


def attacks() -> Iterator[Attack]:
    """Each of them in the place of each kind of file."""
    for what, make in MAKERS.items():
        quick = what == "a pipe"
        places = ("images/a.png", "labels/a.png", "classes.txt", "train.json", "val.json", "train.jsonl")
        for place in places:
            command = "test_sem" if place == "val.json" else "check"
            yield Attack(SPECIAL, f"{what} as {place}, {command}", partial(_special, make, place, command),
                         quick and place != "val.json")  # fmt: skip
        yield Attack(
            SPECIAL, f"{what} as images/a.png, test_sem", partial(_special, make, "images/a.png", "test_sem")
        )
        yield Attack(SPECIAL, f"{what} as --image", partial(_special, make, "images/a.png", "chat"))
        yield Attack(SPECIAL, f"{what} as a model's file", partial(_model_file, make))
        yield Attack(SPECIAL, f"{what} as --config", partial(_config, make))
        yield Attack(SPECIAL, f"{what} as refs(unc).p", partial(_refs_file, make), quick)
        yield Attack(SPECIAL, f"{what} as SAM's file", partial(_sam_file, make))
        yield Attack(SPECIAL, f"{what} as --classes", partial(_classes_file, make))


def _model_file(make: Callable[[Path], None], desk: Desk) -> int:
    folder = desk.copy_model()
    code = 0
    for name in ("tokenizer.json", "preprocessor_config.json", "model.safetensors", "config.json"):
        kept = folder.parent / f"kept_{name}"
        (folder / name).rename(kept)
        make(folder / name)
        code = chat(folder)
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            (folder / name).rmdir()
        else:
            (folder / name).unlink()
        kept.rename(folder / name)
    return code


def _config(make: Callable[[Path], None], desk: Desk) -> int:
    make(desk.here / "config.yaml")
    return train("--config=config.yaml")


def _refs_file(make: Callable[[Path], None], desk: Desk) -> int:
    refer_data(desk.here)
    make(desk.here / "refer_seg/refcoco/refs(unc).p")
    return check("refer_seg", "--refer_seg_data=refcoco")


def _sam_file(make: Callable[[Path], None], desk: Desk) -> int:
    make(desk.here / "sam.pth")
    return load(TOY / "llava", sam="sam.pth")


def _classes_file(make: Callable[[Path], None], desk: Desk) -> int:
    import test_sem

    make(desk.here / "classes.txt")
    return test_sem.main([f"--version={desk.model}", "--images=a.png", "--classes=classes.txt",
                          "--save_predictions=report"])  # fmt: skip
