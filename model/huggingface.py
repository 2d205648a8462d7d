"""Loading with Hugging Face transformers: the only calls of `from_pretrained` and `from_config`.

A folder of weights may name Python files of its own (`auto_map` in config.json or tokenizer_config.json). Unless
`trust_remote_code=False` is passed, transformers asks on stdin whether to run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from model.errors import UserError
from model.plausible import check_plausible

MAX_REASON = 300  # characters of what transformers says


def from_pretrained(kind: Any, source: str | Path | None, **options: Any) -> Any:
    """`kind.from_pretrained(source, **options)`; no code of the folder runs.

    Args:
        kind: a class of transformers (configuration, tokenizer, processor, model, Auto class), or `super()` of one.
        source: folder; None for a model made of `state_dict` and `config`.

    Raises:
        UserError: transformers cannot read the folder's settings, or not without running the folder's code.
    """
    if source is not None and Path(source).is_dir():
        check_plausible(Path(source))
    load: Callable[..., Any] = kind.from_pretrained
    # `super()` and models: what they raise says which weights; tokenizers: `load_tokenizer` names the file.
    if (
        not isinstance(kind, type)
        or issubclass(kind, (PreTrainedModel, PreTrainedTokenizerBase))
        or kind is AutoTokenizer
    ):
        return _without_remote_code(load, source, source, **options)
    with _readable(kind, source):
        return _without_remote_code(load, source, source, **options)


def configuration(kind: Callable[..., Any], source: str | Path, **fields: Any) -> Any:
    """`kind(**fields)` of a configuration class; UserError naming `source` for values that it does not take."""
    with _readable(kind, source):
        return kind(**fields)


@contextmanager
def _readable(kind: Callable[..., Any], source: str | Path | None) -> Iterator[None]:
    """Settings of the wrong type or size make the classes of transformers raise anything: UserError for all of it."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as problem:
        reason = " ".join(str(problem).split())[:MAX_REASON]
        raise UserError(
            f"{source}: its settings cannot be read as {kind.__name__} ({type(problem).__name__}: {reason}); copy "
            "or download the folder's .json files again"
        ) from problem


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
