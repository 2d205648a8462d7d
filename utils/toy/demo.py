"""`make demo`: a segmentation assistant learns on the toy world, from the shipped base weights to a chat.

    python -m utils.toy.demo                  # everything, into runs/demo; a second call continues
    python -m utils.toy.demo --quick          # every step in three minutes, weaker numbers, into runs/demo_quick
    python -m utils.toy.demo --base smolvlm   # from a base of another family, into runs/demo_smolvlm

Each step prints the command that a person would type. At the end: report.json, report.md, losses.png, sheet.png.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from model.checkpoints.load import load_model
from utils.common.command_line import parse_config
from utils.common.commands import command, script_parser
from utils.common.distributed import free_port
from utils.common.files import write_whole
from utils.common.paths import path_flag
from utils.config.training import TrainConfig
from utils.data.registry import build_val_dataset
from utils.data.types import ReferringSample
from utils.reports.curves import read_curves, save_curves
from utils.reports.report import Report, read_report
from utils.reports.tables import Target, print_report
from utils.reports.write import write_report
from utils.toy import world
from utils.toy.pretrain import smolvlm

CONFIG = Path("configs/toy.yaml")
CONFIGS = {"llava": CONFIG, "smolvlm": Path("configs/toy_smolvlm.yaml")}
LAYOUTS = "ade20k,coco,cityscapes,refer,reason"  # those that configs/toy.yaml and the evaluation use
VAL_DATASETS = "ade20k,refcoco|unc|val,grefcoco|unc|val,ReasonSeg|val,llava_instruct_150k"
BASELINE_DATASETS = "ade20k,llava_instruct_150k"
MAX_PROCESSES = 4  # each takes 2 GB
TARGETS = (
    Target(metric="minutes_train", bar=8, goal=6, at_most=True),
    Target(metric="semantic.miou", bar=0.60, goal=0.80),
    Target(metric="presence.accuracy", bar=0.95, goal=0.99),
    Target(metric="referring.ciou", bar=0.60, goal=0.80),
    Target(metric="no_target.accuracy", bar=0.90, goal=0.98),
    Target(metric="reasoning.giou", bar=0.50, goal=0.70),
    Target(metric="vqa.exact_match_change", bar=-0.05, goal=0.0),
    Target(metric="baseline.semantic.miou", bar=0.05, at_most=True),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything there is."""

    out: Path
    base: str = "llava"
    num_images: int  # training scenes of each layout
    num_val: int  # validation scenes of each layout
    max_samples: int | None = None  # of each data set, in the evaluation
    train_flags: tuple[str, ...] = ()
    remark: str = ""  # what the report says about it


FULL = Scale(out=Path("runs/demo"), num_images=400, num_val=100)
QUICK = Scale(
    out=Path("runs/demo_quick"),
    num_images=40,
    num_val=8,
    max_samples=6,
    train_flags=("--epochs", "2", "--steps_per_epoch", "35", "--max_val_samples", "1", "--lr", "0.002"),
    remark="A quick demo: every step, with a fraction of the training and of the samples. Its numbers are weaker "
    "than those of the whole demo (make demo) and are not held to its bars.",
)
# What is said before each step.
STEPS = {
    "draw": "Draw the toy world: cartoon scenes in the layouts of the official data sets.",
    "train": "Train. The language model learns to answer each class of a query with [SEG] or [NEG], and to find what "
    "an expression or a question means (loss ce); the projection and the mask decoder learn to draw a mask for each "
    "[SEG] (bce, dice). After each epoch some held-out scenes say how far that is.",
    "merge": "Merge the adapters into a folder that other programs load.",
    "before": "Evaluate the model as it was before its first step, for comparison.",
    "after": "Evaluate the trained model on held-out scenes: classes of a long list, referring expressions, "
    "expressions without a target, questions that need reasoning, ordinary questions.",
    "ask": "Ask three questions about a held-out scene: a list of classes, an expression, one without a target.",
}

console = Console()


@command("utils.toy.demo")
def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("utils.toy.demo", __doc__)
    parser.add_argument("--base", choices=list(CONFIGS), default="llava", help="the toy base to start from")
    parser.add_argument("--quick", action="store_true", help="every step in three minutes, weaker numbers")
    parser.add_argument(
        "--out", type=path_flag, default=None, help="folder; by default one below runs for each kind of demo"
    )
    parser.add_argument("--num_images", type=int, default=None, help="training scenes of each layout")
    parser.add_argument("--num_val", type=int, default=None, help="validation scenes of each layout")
    parser.add_argument("--train_flags", default="", help="more flags for train_ds.py")
    parser.add_argument(
        "--max_samples", type=int, default=None, help="evaluate on at most n samples of each data set"
    )
    args = parser.parse_args(argv)
    scale = QUICK if args.quick else FULL
    if args.base != scale.base:
        scale = replace(scale, base=args.base, out=Path(f"{scale.out}_{args.base}"))
    given = ("out", "num_images", "num_val", "max_samples")
    scale = replace(scale, **{name: getattr(args, name) for name in given if getattr(args, name) is not None})
    return show(replace(scale, train_flags=(*scale.train_flags, *shlex.split(args.train_flags))))


def show(scale: Scale) -> int:
    """The whole demo; finished steps are left out."""
    out = scale.out
    dataset, merged = out / "dataset", out / "lasagna-toy"
    if scale.remark:
        console.print(scale.remark, style="yellow")
    announce("draw")
    run(world.main, "python -m utils.toy.world", "--out", dataset, "--num_images", scale.num_images,
        "--num_val", scale.num_val, "--layouts", LAYOUTS)  # fmt: skip
    config, version = CONFIGS[scale.base], write_base(scale.base, out / "base")
    announce("train")
    train(out, dataset, [*version, *scale.train_flags], config)
    announce("merge")
    if not (merged / "config.json").is_file():
        run(main_of("merge_lora_weights_and_save_hf_model"),
            "python merge_lora_weights_and_save_hf_model.py", "--weight", out / "ckpt_model",
            "--save_path", merged, "--precision", "fp32")  # fmt: skip
    announce("before")
    untrained = write_untrained(out / "untrained", config, version)
    baseline = report_of(untrained, dataset, BASELINE_DATASETS, out / "eval_untrained", scale.max_samples)
    announce("after")
    report = report_of(merged, dataset, VAL_DATASETS, out / "eval", scale.max_samples)
    announce("ask")
    ask_three_questions(merged, dataset, out / "chat")
    publish(report, baseline, out, scale.remark)
    return 0


def announce(step: str) -> None:
    """Say which step begins, and what it is for."""
    number = list(STEPS).index(step) + 1
    console.print(f"\n[bold cyan]{number}/{len(STEPS)}[/bold cyan] {escape(STEPS[step])}", highlight=False)


def main_of(script: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a script; by name, because utils/ does not import the scripts."""
    return importlib.import_module(script).main


def run(script: Callable[[Sequence[str]], int], command: str, *arguments: object) -> None:
    """Print a command and run it in this process."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold]$ {command} {shlex.join(words)}[/bold]", highlight=False)
    if script(words):
        raise SystemExit(f"demo: the step above failed; fix it and run again ({command})")


def write_base(name: str, folder: Path) -> list[str]:
    """The flags that name a base. The LLaVA is shipped as it is, others are put together in `folder`."""
    if name == "llava":
        return []
    if not (folder / "config.json").is_file():
        run(smolvlm.main, "python -m utils.toy.pretrain.smolvlm", "--out", folder)
    return ["--version", str(folder)]


def num_processes(batch_size: int, cores: int) -> int:
    """How many processes, of one thread each, share a step of `batch_size` samples: at most one for each core.

    Operations of a toy are too small to be divided among threads; its samples are not.
    """
    return max(number for number in range(1, min(cores, MAX_PROCESSES) + 1) if batch_size % number == 0)


def train(out: Path, dataset: Path, flags: list[str], config: Path = CONFIG) -> None:
    """Train with the real launcher; train_seconds.json accumulates wall time over restarts."""
    finished = out / "trained"
    if finished.is_file():
        return
    batch_size = parse_config(TrainConfig, ["--config", str(config)]).batch_size
    processes = num_processes(batch_size, len(os.sched_getaffinity(0)))
    command = [
        "deepspeed", "--num_accelerators", str(processes), "--master_port", str(free_port()),  # beside another demo
        "train_ds.py", "--config", str(config), "--batch_size", str(batch_size // processes),
        "--num_threads", "1", "--dataset_dir", str(dataset),
        "--log_base_dir", str(out.parent), "--exp_name", out.name, "--sam_cache", str(out / "sam_cache"), *flags,
    ]  # fmt: skip
    console.print(f"\n[bold]$ {shlex.join(command)}[/bold]", highlight=False)
    # This environment's launcher, whether or not the environment is activated.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    seconds_file = out / "train_seconds.json"
    before = json.loads(seconds_file.read_text()) if seconds_file.is_file() else 0.0
    started = time.monotonic()
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    finally:
        write_whole(seconds_file, json.dumps(before + time.monotonic() - started))
    if code:
        raise SystemExit("demo: training stopped; run again to continue from its last checkpoint")
    finished.touch()


def write_untrained(folder: Path, config_file: Path = CONFIG, flags: Sequence[str] = ()) -> Path:
    """The model before its first training step, as a folder; the baseline is measured on it."""
    if not (folder / "config.json").is_file():
        config = parse_config(TrainConfig, ["--config", str(config_file), *flags])
        tower = config.vision_tower or None
        model, _ = load_model(config.version, vision_tower=tower, sam=config.vision_pretrained)
        model.config.num_all_classes = config.num_all_classes
        model.save_pretrained(folder)
    return folder


def report_of(model: Path, dataset: Path, entries: str, out: Path, max_samples: int | None) -> Report:
    """The report of a model folder; an existing report is reused."""
    if not (out / "report.json").is_file():
        limit = [] if max_samples is None else ["--max_samples", max_samples]
        run(main_of("test_sem"), "python test_sem.py", "--version", model, "--dataset_dir", dataset,
            "--val_dataset_list", entries, "--val_batch_size", 4, "--precision", "fp32", "--report_dir", out,
            "--vis_save_path", out, *limit)  # fmt: skip
    return read_report(out / "report.json")


def ask_three_questions(model: Path, dataset: Path, out: Path) -> None:
    """One complex, one referring and one no-target question about held-out scenes."""
    scene = build_val_dataset("grefcoco|unc|val", dataset)[0]
    assert isinstance(scene, ReferringSample)
    there = next(text for text, mask in zip(scene.expressions, scene.masks, strict=True) if mask.any())
    missing = next(
        (text for text, mask in zip(scene.expressions, scene.masks, strict=True) if not mask.any()),
        "the purple tent",
    )
    questions = [
        ("--classes", "sky, tree, car, boat, person, grass, sofa, tent"),
        ("--prompt", f"Can you segment {there}?"),
        ("--prompt", f"Can you segment {missing}?"),
    ]
    for number, (flag, text) in enumerate(questions, start=1):
        run(main_of("chat"), "python chat.py", "--version", model, "--image", scene.source, flag, text,
            "--precision", "fp32", "--vis_save_path", out / str(number))  # fmt: skip


def publish(report: Report, baseline: Report, out: Path, remark: str = "") -> None:
    """report.json, report.md, losses.png and sheet.png in `out`, and the table on the terminal.

    remark: said in all of them; then the numbers are not compared with the bars.
    """
    minutes = json.loads((out / "train_seconds.json").read_text()) / 60
    change = report.value("vqa.exact_match") - baseline.value("vqa.exact_match")
    report = report.with_baseline(baseline).with_facts(
        minutes_train=round(minutes, 2), **{"vqa.exact_match_change": round(change, 4)}
    )
    targets: Sequence[Target] = TARGETS
    if remark:
        report, targets = report.with_facts(remark=remark), ()
    curves = read_curves(out / "losses.jsonl", ["total", "cross_entropy", "mask_bce", "dice"])
    save_curves(curves, out / "losses.png", title="training on the toy world")
    write_whole(out / "sheet.png", (out / "eval" / "sheet_ade20k.png").read_bytes())
    path = write_report(report, out, targets, images=["sheet.png", "losses.png"])
    print_report(report, targets)
    if remark:
        console.print(remark, style="yellow")
    console.print(f"\n{path}, {out / 'report.md'}, {out / 'sheet.png'}, {out / 'losses.png'}")


if __name__ == "__main__":
    sys.exit(main())
