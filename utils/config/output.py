"""Rules for the settings that name a run and its trackers."""

from __future__ import annotations

from model.errors import UserError
from utils.common.paths import MAX_NAME_BYTES, name_problem

MAX_RUN_NAME = 100  # characters
TRACKERS = ("tensorboard", "wandb", "trackio")
NO_TRACKER = "none"


def check_run_name(name: str) -> None:
    """UserError unless --exp_name is one part of a path: it names a folder in --log_base_dir, and none elsewhere."""
    shown = name if len(name) <= MAX_RUN_NAME else f"{name[:MAX_RUN_NAME]}..."
    rule = f"--exp_name {shown!r} must be the name of a folder in --log_base_dir"
    if name.strip() in ("", ".", ".."):
        raise UserError(f"{rule}, and names none of its own")
    if any(character in "/\\" or not character.isprintable() for character in name):
        raise UserError(
            f"{rule}, without separators and control characters; --log_base_dir says where it lies"
        )
    if problem := name_problem(name):
        raise UserError(f"{rule}, and {problem}; write it without")
    if len(name) > MAX_RUN_NAME or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise UserError(
            f"{rule} of at most {MAX_RUN_NAME} characters and {MAX_NAME_BYTES} bytes, got {len(name)}"
        )


def trackers_named(text: str) -> tuple[str, ...]:
    """The names in --report_to, each once; () for none.

    Raises:
        UserError: one is unknown, or none stands beside another.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = ", ".join((*TRACKERS, NO_TRACKER))
    if unknown := [name for name in names if name not in (*TRACKERS, NO_TRACKER)]:
        raise UserError(f"--report_to {text!r}: {unknown[0]!r} is not known; choose among: {known}")
    if not names:
        raise UserError(f"--report_to is empty; choose among: {known}")
    if NO_TRACKER in names and len(names) > 1:
        raise UserError(f"--report_to {text!r}: none stands alone; leave it out, or the others")
    return () if names == (NO_TRACKER,) else names
