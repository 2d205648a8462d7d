"""Images in the terminal, where the terminal says that it can show them.

kitty and iTerm2 (and terminals with their protocols) say so in the environment, a terminal with sixel graphics in its
answer to the question for its attributes (DA1). Inside tmux and screen only that answer counts: the environment may
be that of another terminal.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol, iterm2.com/documentation-images.html, VT330/340 Programmer
Reference Manual, chapter 14.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

import numpy as np
from PIL import Image

try:
    import termios
    import tty
except ImportError:  # not a Unix: then no terminal is asked
    termios = tty = None  # type: ignore[assignment]

ESC = "\x1b"
ATTRIBUTES, SIXEL = f"{ESC}[c", "4"  # "which terminal are you?"; 4 in its answer: one that draws sixels
SECONDS = 0.3  # that a terminal has for its answer
CHUNK = 4096  # bytes of base64 in one escape sequence of kitty
MAX_SIDE = 800  # pixels
SIXEL_COLOURS = 255


def protocol_of(wanted: str, environment: Mapping[str, str] = os.environ) -> str:
    """How images are shown on standard output: kitty, iterm2, sixel, or none; `wanted`: as --inline_images."""
    if not sys.stdout.isatty():
        return "none"
    if wanted != "auto":
        return wanted
    if not (environment.get("TMUX") or environment.get("STY")):
        if environment.get("KITTY_WINDOW_ID") or environment.get("TERM", "") in (
            "xterm-kitty",
            "xterm-ghostty",
        ):
            return "kitty"
        if (
            environment.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm")
            or environment.get("LC_TERMINAL") == "iTerm2"
        ):
            return "iterm2"
    return "sixel" if SIXEL in attributes(environment) else "none"


def attributes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The numbers in the terminal's answer to DA1; none if it is no terminal or does not answer."""
    if termios is None or environment.get("TERM", "dumb") == "dumb" or not sys.stdin.isatty():
        return []
    number = sys.stdin.fileno()
    try:
        with unbuffered(number):
            os.write(sys.stdout.fileno(), ATTRIBUTES.encode())
            answer = read_answer(number)
    except (OSError, termios.error):
        return []
    found = re.search(rb"\x1b\[\?([\d;]*)c", answer)
    return found[1].decode().split(";") if found else []


@contextlib.contextmanager
def unbuffered(number: int) -> Iterator[None]:
    """A terminal that gives every byte at once and shows none of them."""
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def read_answer(number: int) -> bytes:
    """Bytes up to the end of an answer, or what came in time."""
    answer, end = b"", time.monotonic() + SECONDS
    while (left := end - time.monotonic()) > 0 and select.select([number], [], [], left)[0]:
        answer += os.read(number, 64)
        if re.search(rb"\x1b\[\?[\d;]*c", answer):
            break
    return answer


def show(image: Image.Image, protocol: str, out: TextIO) -> None:
    """Writes an image to the terminal, shrunk to at most `MAX_SIDE` pixels, and a line end."""
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    encode = {"kitty": kitty, "iterm2": iterm2, "sixel": sixel}
    if protocol in encode:
        out.write(encode[protocol](small.convert("RGB")) + "\n")
        out.flush()


def kitty(image: Image.Image) -> str:
    """kitty's protocol: a PNG in base64, in chunks."""
    data = png_in_base64(image)
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        first = "a=T,f=100," if number == 0 else ""
        more = int(number < len(chunks) - 1)
        parts.append(f"{ESC}_G{first}q=2,m={more};{chunk}{ESC}\\")
    return "".join(parts)


def iterm2(image: Image.Image) -> str:
    """iTerm2's protocol: a PNG in base64."""
    data = png_in_base64(image)
    size = len(base64.b64decode(data))
    return f"{ESC}]1337;File=inline=1;size={size};width={image.width}px;height={image.height}px:{data}\a"


def sixel(image: Image.Image) -> str:
    """DEC's sixels: strips of six rows, in each strip a line of characters for each colour that occurs in it."""
    small = image.quantize(SIXEL_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    pixels = np.asarray(small)
    colours = np.asarray(small.getpalette(), dtype=int).reshape(-1, 3) * 100 // 255  # in per cent
    height, width = pixels.shape
    lines = [f'{ESC}Pq"1;1;{width};{height}']
    lines += [f"#{number};2;{red};{green};{blue}" for number, (red, green, blue) in enumerate(colours)]
    for top in range(0, height, 6):
        strip = pixels[top : top + 6]
        bits = 1 << np.arange(len(strip))
        rows = []
        for colour in np.unique(strip):
            codes = ((strip == colour) * bits[:, None]).sum(axis=0) + 63
            rows.append(f"#{colour}{repeated(codes)}")
        lines.append("$".join(rows) + "-")
    return "".join(lines) + f"{ESC}\\"


def repeated(codes: np.ndarray) -> str:
    """Characters with these numbers; four and more alike as !COUNT and the character."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    counts = np.diff(np.append(starts, len(codes)))
    parts = []
    for code, count in zip(codes[starts].tolist(), counts.tolist(), strict=True):
        parts.append(f"!{count}{chr(code)}" if count > 3 else chr(code) * count)
    return "".join(parts)


def png_in_base64(image: Image.Image) -> str:
    """A PNG file as text."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
