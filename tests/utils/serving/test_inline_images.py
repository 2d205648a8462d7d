"""Images in terminals: the protocols, read by decoders written from their specifications; which terminal is asked."""

from __future__ import annotations

import base64
import io
import os
import re
import threading

import numpy as np
import pytest
from PIL import Image

from utils.serving import inline_images
from utils.serving.inline_images import attributes, iterm2, kitty, protocol_of, show, sixel


def coloured(height: int = 13, width: int = 20) -> Image.Image:
    """Four flat colours that both halves of a per cent keep apart."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[height // 2 :, : width // 2] = (0, 255, 0)
    pixels[height // 2 :, width // 2 :] = (255, 255, 255)
    return Image.fromarray(pixels)


def read_sixel(text: str) -> np.ndarray:
    """(height, width, 3) uint8 of a sixel sequence with a raster header."""
    body = re.fullmatch(r"\x1bPq(.*)\x1b\\", text, re.S)[1]
    width, height = map(int, re.match(r'"1;1;(\d+);(\d+)', body).groups())
    body = body[body.index("#") :]
    image = np.zeros((height + 6, width, 3), np.uint8)
    palette, colour, x, y = {}, 0, 0, 0
    for part in re.findall(r"#\d+(?:;\d+){4}|#\d+|!\d+[?-~]|[?-~]|\$|-", body):
        if part == "$":
            x = 0
        elif part == "-":
            x, y = 0, y + 6
        elif part[0] == "#":
            number, *values = map(int, part[1:].split(";"))
            if values:
                palette[number] = np.round(np.array(values[1:]) * 2.55)
            colour = number
        else:
            count = int(part[1:-1]) if part[0] == "!" else 1
            bits = ord(part[-1]) - 63
            for row in range(6):
                if bits >> row & 1:
                    image[y + row, x : x + count] = palette[colour]
            x += count
    return image[:height]


def test_a_sixel_image_has_the_pixels_of_the_image():
    assert np.array_equal(read_sixel(sixel(coloured())), np.asarray(coloured()))


def test_a_png_goes_to_kitty_in_chunks_and_to_iterm_whole():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(noise))
    assert len(parts) > 2
    assert all(len(data) <= 4096 for _, data in parts)
    assert [("m=1" in keys) for keys, _ in parts] == [True] * (len(parts) - 1) + [False]
    for data in ("".join(data for _, data in parts), re.search(r":([\w+/=]+)\a", iterm2(noise))[1]):
        with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
            assert np.array_equal(np.asarray(decoded), np.asarray(noise))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "none"),
        ({}, "none"),
    ],
)
def test_the_protocol_is_the_one_that_the_terminal_states(environment, protocol, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(inline_images, "attributes", lambda environment: [])
    assert protocol_of("auto", environment) == protocol
    monkeypatch.setattr(inline_images, "attributes", lambda environment: ["62", "4"])
    assert protocol_of("auto", environment) == (protocol if protocol != "none" else "sixel")
    assert protocol_of("none", environment) == "none"
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert protocol_of("kitty", environment) == "none"


@pytest.mark.parametrize(
    ("answer", "expected"), [(b"\x1b[?62;4;22c", ["62", "4", "22"]), (b"\x1b[?1;2c", ["1", "2"]), (b"", [])]
)
def test_a_terminal_is_asked_for_its_attributes(answer, expected, monkeypatch):
    terminal, program = os.openpty()
    monkeypatch.setattr(inline_images, "SECONDS", 0.5 if answer else 0.05)

    def reply():
        assert os.read(terminal, 16) == b"\x1b[c"
        os.write(terminal, answer)

    with os.fdopen(program, "r+b", buffering=0, closefd=False) as file:
        stream = type("Stream", (), {"isatty": lambda self: True, "fileno": lambda self: file.fileno()})()
        monkeypatch.setattr("sys.stdin", stream)
        monkeypatch.setattr("sys.stdout", stream)
        thread = threading.Thread(target=reply)
        thread.start()
        assert attributes({"TERM": "xterm"}) == expected
        thread.join()
        assert attributes({"TERM": "dumb"}) == []
    os.close(terminal)
    os.close(program)


def test_a_large_image_is_shrunk_and_nothing_is_shown_where_nothing_can_be():
    out = io.StringIO()
    show(coloured(1600, 200), "sixel", out)
    assert read_sixel(out.getvalue().rstrip("\n")).shape == (800, 100, 3)
    quiet = io.StringIO()
    show(coloured(), "none", quiet)
    assert quiet.getvalue() == ""
