"""Measurements behind the performance claims of the documentation; each prints a table and writes a JSON file."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
