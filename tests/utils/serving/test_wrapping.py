"""Text that comes in parts on a terminal of 80 columns, and in a pipe."""

from __future__ import annotations

import io
import textwrap
from itertools import pairwise

import numpy as np
import pytest
from rich.cells import cell_len

from utils.serving.wrapping import Writer

TEXT = "The left red car [SEG] is beside a well-known traffic light [SEG], and no dog [NEG] is there. " * 4


@pytest.mark.parametrize("width", [80, 33])
def test_parts_are_wrapped_like_the_whole(width):
    out = io.StringIO()
    lines = Writer(out, width)
    rng = np.random.default_rng(0)
    cuts = sorted({0, len(TEXT), *rng.integers(0, len(TEXT), 60).tolist()})
    for start, end in pairwise(cuts):
        lines.add(TEXT[start:end])
    lines.end()
    assert out.getvalue() == textwrap.fill(TEXT.strip(), width, break_on_hyphens=False) + "\n"


def test_further_lines_are_indented():
    out = io.StringIO()
    lines = Writer(out, 12, indent="    ")
    lines.add("  one two three four")
    lines.end()
    assert out.getvalue() == "  one two\n    three\n    four\n"


def test_wide_letters_take_two_columns_and_lines_of_the_text_stay():
    out = io.StringIO()
    lines = Writer(out, 10)
    lines.add("日本語 日本語\nx")
    lines.end()
    assert out.getvalue() == "日本語\n日本語\nx\n"
    assert max(map(cell_len, out.getvalue().splitlines())) <= 10


def test_in_a_pipe_the_text_is_as_it_came_and_commands_nothing():
    out = io.StringIO()
    lines = Writer(out, None)
    for part in ("a  b\x1b[2J", " ", "c" * 200):
        lines.add(part)
    lines.end()
    assert out.getvalue() == "a  b\\x1b[2J " + "c" * 200 + "\n"
