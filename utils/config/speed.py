"""Which of the settings that make training faster go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.errors import UserError

if TYPE_CHECKING:
    from utils.config.training import TrainConfig

RECORDED_ATTENTION = ("auto", "sdpa", "eager")
MIN_MULTIPLE = 16  # tokens: with fewer nearly every batch has a length of its own


def check_speed(config: TrainConfig) -> None:
    """Checks that these settings go together.

    Raises:
        UserError: they do not.
    """
    for name in ("compile", "cuda_graphs"):
        if getattr(config, name) and config.zero_stage == 3:
            raise UserError(
                f"--{name} does not go with --zero_stage 3, which gathers weights around every layer; leave one out"
            )
    if not config.cuda_graphs:
        return
    if config.gradient_checkpointing:
        raise UserError(
            "--cuda_graphs does not go with gradient checkpointing, which draws random numbers anew in backward; add "
            "--no_gradient_checkpointing"
        )
    if config.pad_to_multiple_of < MIN_MULTIPLE:
        raise UserError(
            "--cuda_graphs needs rows of few lengths, and with --pad_to_multiple_of "
            f"{config.pad_to_multiple_of} they have nearly every one; take at least {MIN_MULTIPLE}"
        )
    if config.attn_implementation not in RECORDED_ATTENTION:
        raise UserError(
            f"--cuda_graphs does not go with --attn_implementation {config.attn_implementation}, whose masks are "
            f"made on the host; take {' or '.join(RECORDED_ATTENTION)}"
        )
