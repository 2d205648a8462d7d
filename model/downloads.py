"""Files that are not what their names say: a Git LFS pointer, a web page, half a download."""

from __future__ import annotations

import zipfile
from pathlib import Path

from model.errors import UserError
from model.files import is_regular

SUFFIXES = (".bin", ".safetensors", ".pth", ".pt", ".ckpt", ".model", ".json")
WEIGHT_SUFFIXES = SUFFIXES[:5]
TEXT_SUFFIXES = (".jinja", ".txt", ".yaml")  # that are part of a model
POINTER = b"version https://git-lfs"
PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")
OTHER_KINDS = (
    (b"\xff\xd8\xff", "an image"), (b"\x89PNG", "an image"), (b"GIF8", "an image"), (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "a packed archive"), (b"7z\xbc\xaf", "a packed archive"), (b"\xfd7zXZ", "a packed archive"),
)  # fmt: skip
BEGINNING = 512  # bytes; a pointer is shorter


def check_download(path: Path) -> None:
    """Whether a file of weights, a tokenizer or a JSON file can be one, by its first bytes.

    Raises:
        UserError: it is a Git LFS pointer, a web page, empty, cut off or text; the message has the cure.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(BEGINNING)
    except (FileNotFoundError, IsADirectoryError):
        return  # whoever reads it says so, and which flag named it
    plain = begins.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not begins:
        raise UserError(f"{path} is empty; copy or download it again")
    if plain.startswith(POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs install && git lfs pull` in its folder, "
            "or download the file again"
        )
    if plain.startswith(PAGE):
        raise UserError(
            f"{path} is a web page, not the file itself: download it again from the link that leads to the file "
            "(on the hub: /resolve/, not /blob/; some files need a login)"
        )
    if path.suffix.lower() in (".json", ".jsonl", ".model"):
        return
    if begins.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is cut off ({path.stat().st_size:,} bytes are there); copy or download it again"
        )
    kind = next((kind for mark, kind in OTHER_KINDS if begins.startswith(mark)), None)
    if kind is None and _is_text(begins):
        kind = "a text"
    if kind:
        raise UserError(f"{path} is {kind}, not weights; pass the file of weights, or download it again")


def check_folder(folder: Path) -> None:
    """`check_download` for each file of a model's folder that has a fitting name.

    Whoever reads the files takes what is no file for absent: a link into a cache that was emptied would leave a model
    without its template.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (*SUFFIXES, *TEXT_SUFFIXES):
            continue
        if path.is_dir() and path.suffix.lower() in WEIGHT_SUFFIXES:
            continue  # a folder of shards, or any other: whoever looks for a file does not find it
        if not is_regular(path):
            raise UserError(f"{path} is a link to nothing; copy or download the model again")
        if path.suffix.lower() in SUFFIXES:
            check_download(path)


def _is_text(content: bytes) -> bool:
    """Whether bytes are printable UTF-8; weights begin with a pickle's, a zip's or a length's control characters."""
    try:
        text = content[:-3].decode() or content.decode()  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)
