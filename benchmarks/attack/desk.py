"""What the attacks start from: a small sound model, its base, an image, and a folder for each attack."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import TOY, TOY_PARTS

SECRET = "THE-SECRET-OF-A-FILE-OUTSIDE"
SECRET_COLOUR = (251, 3, 249)
CANARY = "EXECUTED"
SMALL_TRAINING = (
    f"--version={TOY}/llava", *TOY_PARTS, "--epochs=1", "--steps_per_epoch=1", "--grad_accumulation_steps=1",
    "--batch_size=1", "--workers=0", "--num_threads=1", "--precision=fp32", "--no_eval", "--log_base_dir=runs",
)  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """The folder of one attack: `here` is where the command runs, `outside` what it has no business with."""

    folder: Path
    model: Path  # a sound merged model, to be copied

    @property
    def here(self) -> Path:
        return self.folder / "here"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def canary(self) -> Path:
        """What the code of an attack makes when it runs."""
        return self.folder / CANARY

    @property
    def shell(self) -> str:
        """The shell command of an attack."""
        return f"touch {self.canary}"

    def lay_out(self) -> None:
        """Creates the folders, a secret text and a secret image outside, and an honest image."""
        self.here.mkdir(parents=True)
        self.outside.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        Image.new("RGB", (40, 30), SECRET_COLOUR).save(self.outside / "secret.png")
        write_image(self.here / "a.png")

    def copy_model(self, name: str = "model") -> Path:
        """A copy of the sound model whose files may be replaced."""
        target = self.here / name
        target.mkdir()
        for file in self.model.iterdir():
            if file.suffix == ".safetensors":
                os.link(file, target / file.name)
            else:
                shutil.copy(file, target / file.name)
        return target

    def copy_llava(self) -> Path:
        """A copy of the toy world's original LLaVA, whose weights are a .bin file."""
        target = self.here / "llava"
        shutil.copytree(TOY / "llava", target)
        return target

    def evil_module(self, folder: Path, name: str = "evil") -> None:
        """A Python file beside weights that says so when it is imported."""
        (folder / f"{name}.py").write_text(
            f"open({str(self.canary)!r}, 'w').close()\n"
            "class X:\n    @classmethod\n    def from_pretrained(cls, *args, **kwargs):\n        return cls()\n"
        )


@dataclass(frozen=True)
class Attack:
    """One file that attacks, and the command that meets it."""

    kind: str  # a heading of docs/security.md
    name: str
    run: Callable[[Desk], int | None]  # prepares the files, runs the command, returns its exit code
    quick: bool = False  # part of the short version
    long_answer: bool = False  # as long as what was asked, which is no message of pages


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the object in a JSON file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def write_image(path: Path, height: int = 30, width: int = 40) -> None:
    """An honest image, grey on the left and white on the right."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[:, : width // 2] = 90
    Image.fromarray(pixels).save(path)


def coco(names: list[str], file_names: list[str], **changes: Any) -> dict[str, Any]:
    """A COCO file of which every image shows an object of every class."""
    box = [[2, 2, 20, 2, 20, 20, 2, 20]]
    content: dict[str, Any] = {
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "images": [
            {"id": number, "file_name": name, "height": 30, "width": 40}
            for number, name in enumerate(file_names, start=1)
        ],
        "annotations": [
            {"id": 100 * image + kind, "image_id": image, "category_id": kind, "segmentation": box}
            for image in range(1, len(file_names) + 1)
            for kind in range(1, len(names) + 1)
        ],
    }
    return content | changes


def chat(model: Path | str, *more: str, image: str = "a.png") -> int:
    """`python chat.py` about one class of an image."""
    import chat as script

    question = [] if any(flag.startswith(("--prompt", "--classes")) for flag in more) else ["--classes=dog"]
    return script.main([f"--version={model}", f"--image={image}", *question, *more])


def load(version: Path | str, *, tower: Path | str = TOY / "clip", sam: Path | str = TOY / "sam2") -> int:
    """`load_model`, of a model that needs a CLIP tower and a SAM beside it; ends as the commands do."""
    from model.checkpoints.load import load_model
    from utils.common.commands import command

    @command("load_model")
    def main(argv: Sequence[str] | None = None) -> int:
        load_model(version, vision_tower=str(tower), sam=str(sam))
        return 0

    return main([])


def merge(weight: Path | str, *more: str) -> int:
    """`python merge_lora_weights_and_save_hf_model.py` of a run's weights."""
    import merge_lora_weights_and_save_hf_model as script

    return script.main([f"--weight={weight}", "--save_path=merged", *more])


def evaluate(model: Path | str, entry: str, *more: str) -> int:
    """`python test_sem.py` with a report."""
    import test_sem as script

    return script.main([
        f"--version={model}", "--dataset_dir=.", f"--val_dataset_list={entry}", "--report_dir=report",
        "--vis_save_path=report", "--max_samples=2", "--num_threads=1", "--precision=fp32", "--workers=0", *more,
    ])  # fmt: skip


def check(entry: str, *more: str) -> int:
    """`python -m utils.data.tools.check` of every file."""
    from utils.data.tools import check as script

    return script.main(["--dataset_dir=.", f"--dataset={entry}", "--all", *more])


def preview(entry: str, *more: str) -> int:
    """`python -m utils.data.tools.preview`."""
    from utils.data.tools import preview as script

    return script.main(["--dataset_dir=.", f"--dataset={entry}", "--num_samples=2", "--out=preview", *more])


def train(*more: str) -> int:
    """`python train_ds.py` of one step."""
    import train_ds as script

    return script.main([*SMALL_TRAINING, "--dataset_dir=.", *more])
