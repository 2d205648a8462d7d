"""Masks in the run-length code of Label Studio's brush.

Runs of 8-bit values, packed bit by bit. A mask is an RGBA image: each pixel is four values. Layout: 32 bits for the
number of values, 5 for the word size less 1, four times 4 for the bits of a run's length less 1; then each run: a 1,
two bits that choose one of these four sizes, the length less 1, and the value.

Source: the decoder of @thi.ng/rle-pack, which Label Studio uses.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CHANNELS = 4  # red, green, blue, alpha
WORD_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
LONGEST = 1 << LENGTH_BITS[-1]
INSIDE = 255


def brush_code(pixels: np.ndarray) -> list[int]:
    """The bytes of a (height, width) bool mask of at least one pixel, as numbers; opaque white inside."""
    header = f"{pixels.size * CHANNELS:032b}{WORD_BITS - 1:05b}" + "".join(
        f"{size - 1:04b}" for size in LENGTH_BITS
    )
    bits = header + "".join(run_bits(length, value) for length, value in runs(pixels))
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def runs(pixels: np.ndarray) -> Iterator[tuple[int, int]]:
    """(number of values, value) of each run of equal values."""
    flat = pixels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    values = np.where(flat[starts], INSIDE, 0)
    return zip(lengths.tolist(), values.tolist(), strict=True)


def run_bits(length: int, value: int) -> str:
    """A run of values; one that is too long for a code becomes several."""
    whole, rest = divmod(length, LONGEST)
    code = f"{value:0{WORD_BITS}b}"
    bits = f"111{LONGEST - 1:0{LENGTH_BITS[-1]}b}{code}" * whole
    if rest:
        choice = next(number for number, size in enumerate(LENGTH_BITS) if rest <= 1 << size)
        bits += f"1{choice:02b}{rest - 1:0{LENGTH_BITS[choice]}b}{code}"
    return bits
