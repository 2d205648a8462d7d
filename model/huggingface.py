"""Loading with Hugging Face transformers: the only calls of `from_pretrained` and `from_config`.

A folder of weights may name Python files of its own (`auto_map` in config.json or tokenizer_config.json). Unless
`trust_remote_code=False` is passed, transformers asks on stdin whether to run them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from model.errors import UserError
from model.plausible import check_plausible

SAMPLING_FILE = "generation_config.json"
STACK = "Exception raised from"  # what follows in messages of PyTorch's C++
MAX_REASON = 300  # characters of what transformers says
CURE = "copy or download the folder's .json files again"


def from_pretrained(kind: Any, source: str | Path | None, **options: Any) -> Any:
    """`kind.from_pretrained(source, **options)`; no code of the folder runs.

    Args:
        kind: a class of transformers (configuration, tokenizer, processor, model, Auto class), or `super()` of one.
        source: folder; None for a model made of `state_dict` and `config`.
        options: with `output_loading_info` the caller reports weights that do not fit, and transformers does not.

    Raises:
        UserError: transformers cannot read the folder's settings, or not without running the folder's code.
    """
    if source is not None and Path(source).is_dir():
        check_plausible(Path(source))
        _check_sampling(kind, Path(source))
    load: Callable[..., Any] = kind.from_pretrained
    block: AbstractContextManager[None] = nullcontext()
    if options.get("output_loading_info"):
        block = _without_tables()
    # `super()` and models: what they raise says which weights; tokenizers: `load_tokenizer` names the file.
    elif (
        isinstance(kind, type)
        and not issubclass(kind, (PreTrainedModel, PreTrainedTokenizerBase))
        and kind is not AutoTokenizer
    ):
        block = readable(kind.__name__, source)
    with block:
        return _without_remote_code(load, source, source, **options)


def configuration(kind: Callable[..., Any], source: str | Path, **fields: Any) -> Any:
    """`kind(**fields)` of a configuration class; UserError naming `source` for values that it does not take."""
    with readable(kind.__name__, source):
        return kind(**fields)


@contextmanager
def readable(what: str, source: str | Path | None, cure: str = CURE) -> Iterator[None]:
    """UserError for whatever a block raises that reads, or builds something from, the settings or sizes of `source`.

    Those of the wrong type or size make the classes of transformers raise anything. `what` they should be, such as
    the name of a class.
    """
    try:
        yield
    except (UserError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as problem:
        reason = " ".join(str(problem).partition(STACK)[0].split())[:MAX_REASON]
        raise UserError(
            f"{source} cannot be read as {what} ({type(problem).__name__}: {reason}); {cure}"
        ) from problem


def _check_sampling(kind: Any, folder: Path) -> None:
    """UserError for sampling settings beside a model that transformers cannot read."""
    if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and (folder / SAMPLING_FILE).is_file():
        with readable("sampling settings", folder / SAMPLING_FILE):
            GenerationConfig.from_pretrained(folder)


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


@contextmanager
def _without_tables() -> Iterator[None]:
    """Drops transformers' table, for terminals, of weights that do not fit.

    The level of its logger stays: where it is raised, transformers checks plans of parallelism, at length.
    """
    logger = logging.getLogger(PreTrainedModel.__module__)

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)
