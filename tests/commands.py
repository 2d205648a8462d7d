"""Extracts the shell commands and Python examples of a Markdown page, and runs them in the test process."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHER_FLAGS = (
    "--master_port",
    "--num_gpus",
    "--num_accelerators",
    "--num_nodes",
    "--hostfile",
    "--include",
    "--standalone",
    "--nnodes",
    "--nproc_per_node",
    "--rdzv",
)

# Reduces the README's training command to seconds: four steps on the toy world's data sets.
SMALL_RUN = (
    "--refer_seg_data=refcoco||grefcoco",
    "--epochs=2",
    "--steps_per_epoch=2",
    "--grad_accumulation_steps=1",
    "--warmup_steps=2",
    "--lr=1e-3",
    "--workers=0",
    "--num_threads=1",
    "--val_dataset_list=ade20k,refcoco|unc|val,ReasonSeg|val",
    "--max_val_samples=1",
)
# In the workspace: tiny base weights, which train in a third of the time of assets/toy, and the toy world.
BASE = (
    "--version=base/llava",
    "--vision_tower=base/clip",
    "--vision_pretrained=base/sam.pth",
    "--dataset_dir=./dataset",
)
# Two steps an epoch, two epochs, float32, no validation.
QUICK = (*BASE, *SMALL_RUN, "--no_eval", "--precision=fp32", "--batch_size=1", "--num_all_classes=8")


def losses_of(folder: Path) -> list[dict[str, float]]:
    """The losses that a training run logged, one entry per step."""
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def blocks(page: Path, *languages: str) -> list[str]:
    """The contents of a page's code blocks in these languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [content for language, content in found if language in languages]


def shell_commands(page: Path) -> list[str]:
    """Every command in the page's shell blocks, with continuation lines joined."""
    lines = "\n".join(blocks(page, "bash", "sh", "shell", "console")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.strip().startswith("#")]


def fill_in(text: str, workspace: Path) -> str:
    """Replaces the README's placeholders for paths by those of the workspace."""
    places = {
        "PATH_TO_LLaVA": "base/llava",
        "PATH_TO_CLIP": "base/clip",
        "PATH_TO_SAM": "base/sam.pth",
        "PATH_TO_pytorch_model.bin": "runs/LaSagnA-7b/pytorch_model.bin",
        "PATH_TO_LaSagnA_MODEL": str(workspace / "merged"),
        "PATH_TO_IMAGE": str(min((workspace / "dataset/ade20k/images/validation").iterdir())),
    }
    for name, path in places.items():
        text = text.replace(name, path)
    return text


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    folder: str  # of a leading `cd FOLDER &&`
    script: str  # "train_ds", "utils.toy.world", "zero_to_fp32", or the first word of anything else
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> Command:
        folder, line = line.split("&&", 1) if line.startswith("cd ") else ("cd .", line)
        words = shlex.split(line, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # an environment variable
            words.pop(0)
        starter = words.pop(0)
        if starter in ("deepspeed", "torchrun"):
            while words[0].startswith(LAUNCHER_FLAGS):
                flag = words.pop(0)
                if "=" not in flag and flag != "--standalone":
                    words.pop(0)
        elif starter not in ("python", "python3"):
            return cls(folder=folder[3:].strip(), script=starter, arguments=tuple(words))
        script = words.pop(0)
        script = words.pop(0) if script == "-m" else script.removesuffix(".py")
        return cls(folder=folder[3:].strip(), script=script, arguments=tuple(words))

    def run(self, *more: str) -> int:
        """Runs it in this process, from the current folder; `more` are additional arguments, which win."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            arguments = [*self.arguments, *more]
            if self.script == "zero_to_fp32":  # the copy that DeepSpeed put into the checkpoint
                patch.setattr("sys.argv", ["zero_to_fp32.py", *arguments])
                runpy.run_path("zero_to_fp32.py", run_name="__main__")
                return 0
            return main_of(self.script)(arguments)


def main_of(script: str):
    """`main(argv)` of one of our scripts, modules, or packages that `python -m` runs."""
    module = importlib.import_module(script)
    return (importlib.import_module(f"{script}.__main__") if hasattr(module, "__path__") else module).main


def run(script: str, *arguments: object) -> int:
    """Runs `python SCRIPT.py ARGUMENTS` in this process; returns its exit code."""
    return main_of(script)([str(argument) for argument in arguments])


def complaint(capsys: pytest.CaptureFixture[str], *parts: str | Sequence[str]) -> str:
    """The only line on stderr; asserts that it contains all `parts`."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0]
    return lines[0]
