"""Logging of the scripts."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from transformers.utils import logging as transformers_logging

from utils.common.terminal import PrintableFormatter


def start_logging() -> None:
    """One line per message, on the first process only; of libraries only warnings and errors."""
    is_first = os.environ.get("RANK", "0") == "0"
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("model").setLevel(logging.INFO if is_first else logging.ERROR)
    logging.getLogger("utils").setLevel(logging.INFO if is_first else logging.ERROR)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    # PyTorch's scheduler counts DeepSpeed's steps wrongly and says so at every start.
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # Pillow's warnings about damaged metadata; files that cannot be read are reported with their path.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused with its path
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Print only errors of the loggers below `name` inside the block: the caller reports the rest itself."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
