"""Measurements that a claim of the documentation rests on; each prints a table and writes a JSON file."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
