"""Loading with Hugging Face transformers: the only calls of `from_pretrained` and `from_config`.

A folder of weights may name Python files of its own (`auto_map` in config.json or tokenizer_config.json). Unless
`trust_remote_code=False` is passed, transformers asks on stdin whether to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import UserError


def from_pretrained(kind: Any, source: str | Path | None, **options: Any) -> Any:
    """`kind.from_pretrained(source, **options)`; no code of the folder runs.

    Args:
        kind: a class of transformers (configuration, tokenizer, processor, model, Auto class), or `super()` of one.
        source: folder; None for a model made of `state_dict` and `config`.

    Raises:
        UserError: transformers cannot read the folder without running the folder's code.
    """
    return _without_remote_code(kind.from_pretrained, source, source, **options)


def from_config(kind: Any, config: Any, **options: Any) -> Any:
    """`kind.from_config(config, **options)` of an Auto class; errors as in `from_pretrained`."""
    return _without_remote_code(kind.from_config, "the configuration", config, **options)


def _without_remote_code(
    load: Callable[..., Any], name: str | Path | None, argument: Any, **options: Any
) -> Any:
    try:
        return load(argument, **{**options, "trust_remote_code": False})
    except ValueError as problem:
        if "trust_remote_code" not in str(problem):
            raise
        # The message of transformers advises to trust the code.
        raise UserError(
            f"{name} needs Python code of its own ('auto_map' in its config.json or tokenizer_config.json), which is "
            "never run; pass a model whose classes are part of transformers"
        ) from problem
