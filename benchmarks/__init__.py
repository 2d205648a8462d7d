"""Measurements behind the performance claims of the documentation; each prints a table and writes a JSON file."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.common.help import PageFormatter

ROOT = Path(__file__).parents[1]
TOY = ROOT / "assets" / "toy"
# What the toy's LLaVA needs beside it.
TOY_PARTS = (f"--vision_tower={TOY}/clip", f"--vision_pretrained={TOY}/sam2")


def script_parser(name: str, about: str) -> argparse.ArgumentParser:
    """The parser of `python -m NAME`; `about`, the docstring of its module, is what --help says first."""
    return argparse.ArgumentParser(prog=f"python -m {name}", description=about, formatter_class=PageFormatter)
