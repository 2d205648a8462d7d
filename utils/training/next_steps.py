"""What a training run says at its end: which weights are the best, and the commands to type next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from model.checkpoints.layouts.base import CHECKPOINT_FOLDER
from model.errors import UserError
from utils.common.logs import quiet
from utils.common.terminal import printable
from utils.config.training import TrainConfig
from utils.data.val_datasets import open_list
from utils.training.checkpoint import BEST_FOLDER
from utils.training.progress import Progress

WIDTH = 80


def best_text(config: TrainConfig, progress: Progress) -> str:
    """Which weights are the best, by which number, and their folder in a line of its own."""
    best, folder = progress.validated, config.run_dir / BEST_FOLDER
    if config.no_eval:
        return f"no validation; the weights of step {progress.step} are in\n  {config.run_dir / CHECKPOINT_FOLDER}"
    if best.best_step is None:
        return f"no validation came to a number; the weights of step {progress.step} are in\n  {folder}"
    measured = f"best: step {best.best_step} with {best.best_score:.4f}, {best.best_measured}, in"
    return f"{textwrap.fill(measured, WIDTH, subsequent_indent='  ')}\n  {folder}"


def next_commands(config: TrainConfig) -> list[list[str]]:
    """Merge, evaluate, chat, as words; without the evaluation where its data sets are not there."""
    weights = config.run_dir / (CHECKPOINT_FOLDER if config.no_eval else BEST_FOLDER)
    merged = free_folder(config.run_dir / "merged")
    commands = [
        [
            *("python", "merge_lora_weights_and_save_hf_model.py"),
            *("--weight", str(weights), "--save_path", str(merged)),
        ],
        [
            *("python", "test_sem.py", "--version", str(merged), "--dataset_dir", config.dataset_dir),
            *("--val_dataset_list", config.val_dataset_list, "--report_dir", str(merged.with_name("report"))),
        ],
        ["python", "chat.py", "--version", str(merged)],
    ]
    if config.no_eval and not can_be_opened(config):
        del commands[1]
    return commands


def free_folder(folder: Path) -> Path:
    """The folder, or the next one of that name with a number: the merge writes into a new one."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")
    return free


def can_be_opened(config: TrainConfig) -> bool:
    """Whether the data sets to validate on are there; a run without validation has not asked."""
    try:
        with quiet("utils"):
            open_list(config.val_dataset_list, config.dataset_dir)
    except (UserError, OSError):
        return False
    return True


def farewell(config: TrainConfig, progress: Progress) -> str:
    """The lines at the end of a run."""
    titles = {"merge": "merge", "test": "evaluate", "chat": "ask"}
    lines = [printable(best_text(config, progress)), "next:"]
    for words in next_commands(config):
        title = next(title for start, title in titles.items() if words[1].startswith(start))
        lines.append(f"# {title}")
        lines += as_typed(words)
    return "\n".join(lines)


def as_typed(words: Sequence[str]) -> list[str]:
    """A command in lines of at most 80 columns, which can be pasted into a shell; a long word stays whole."""
    lines, line = [], shlex.quote(words[0])
    flags: list[str] = []  # a flag stays with its value
    for word in words[1:]:
        if word.startswith("--") or not flags:
            flags.append(shlex.quote(word))
        else:
            flags[-1] += f" {shlex.quote(word)}"
    for part in flags:
        if len(line) + len(part) + 3 > WIDTH:
            lines.append(f"{line} \\")
            line = f"  {part}"
        else:
            line += f" {part}"
    return [*lines, line]
