"""Small files and short flags that mean endless work: images that inflate, archives that do, prompts without end."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import TOY
from benchmarks.attack.desk import Attack, Desk, chat, check, coco, load
from benchmarks.attack.pickles import in_llava, in_sam, in_weight

KIND = "endless work"


def png(height: int, width: int, *, text: bytes = b"") -> bytes:
    """A black PNG: 13,000 x 13,000 pixels take 164 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (1 + (width + 7) // 8)) for _ in range(min(height, 40_000)))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + text
        + chunk(b"IDAT", rows + packer.flush())
        + chunk(b"IEND", b"")
    )


def _chunk_of_text() -> bytes:
    content = b"comment\0\0" + zlib.compress(b"\0" * 2**28, 9)
    return (
        struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    )


def _image(content: bytes, command: str, desk: Desk) -> int:
    (desk.here / "bomb.png").write_bytes(content)
    (desk.here / "train.json").write_text(json.dumps(coco(["dog"], ["a.png", "bomb.png"])))
    return check("own_coco:.") if command == "check" else chat(desk.model, image="bomb.png")


def bomb(entry: str, size: int = 5 * 2**30) -> bytes:
    """A zip archive of which one entry inflates to `size` zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open(entry, "w", force_zip64=True) as inside:
            for _ in range(size // 2**24):
                inside.write(bytes(2**24))
    return file.getvalue()


def _bomb(place: str, desk: Desk) -> int:
    run = {"LLaVA": in_llava, "SAM": in_sam, "weights": in_weight}[place]
    return run(bomb("archive/data.pkl"), desk)


def _storage_bomb(desk: Desk) -> int:
    """Weights of which one storage inflates."""
    import torch

    torch.save({"a": torch.zeros(4)}, "small.bin")
    file = io.BytesIO()
    with zipfile.ZipFile("small.bin") as small, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in small.infolist():
            if info.filename.endswith("/data/0"):
                with archive.open(info.filename, "w", force_zip64=True) as inside:
                    for _ in range(5 * 2**6):
                        inside.write(bytes(2**24))
            else:
                archive.writestr(info.filename, small.read(info))
    return in_weight(file.getvalue(), desk)


def _prompt(text: str, desk: Desk) -> int:
    return chat(desk.model, f"--prompt={text}", "--max_new_tokens=5")


def _classes(count: int, desk: Desk) -> int:
    return chat(desk.model, f"--classes={', '.join(f'class {number}' for number in range(count))}")


def _class_name(desk: Desk) -> int:
    return chat(desk.model, f"--classes=dog, {'x' * 1_000_000}")


def _tokens(desk: Desk) -> int:
    return chat(desk.model, "--prompt=What is this?", "--max_new_tokens=1000000000")


def _thousand_names(desk: Desk) -> int:
    names = [f"class {number}" for number in range(50_000)]
    content = coco(["dog"], ["a.png"])
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    Path("train.json").write_text(json.dumps(content))
    return check("own_coco:.")


def _npz(name: str, desk: Desk) -> int:
    """An archive where an image or weights are expected."""
    (desk.here / name).write_bytes(bomb("arr_0.npy", 2**30))
    if name.endswith(".npz"):
        return chat(desk.model, image=name)
    return load(TOY / "llava", sam=name)


def attacks() -> Iterator[Attack]:
    for command in ("chat", "check"):
        yield Attack(
            KIND,
            f"PNG of 13,000 x 13,000 pixels, {command}",
            partial(_image, png(13_000, 13_000), command),
            command == "check",
        )
        yield Attack(
            KIND, f"PNG that says 2^31 x 2^31 pixels, {command}", partial(_image, _lying_png(), command)
        )
        yield Attack(
            KIND,
            f"PNG with a comment of 256 MB, {command}",
            partial(_image, png(30, 40, text=_chunk_of_text()), command),
        )
    for place in ("LLaVA", "SAM", "weights"):
        yield Attack(KIND, f"archive of 5 GB as {place}", partial(_bomb, place))
    yield Attack(KIND, "archive with a storage of 5 GB", _storage_bomb)
    yield Attack(KIND, "archive as an image", partial(_npz, "bomb.npz"))
    yield Attack(KIND, "archive as SAM", partial(_npz, "bomb.pth"))
    yield Attack(KIND, "prompt of 20,000 words", partial(_prompt, "dog " * 20_000), True)
    yield Attack(KIND, "prompt of half a character", partial(_prompt, "dog \ud83d"), True)
    yield Attack(KIND, "3,000 class names", partial(_classes, 3_000), long_answer=True)
    yield Attack(KIND, "a class name of a million letters", _class_name)
    yield Attack(KIND, "50,000 categories", _thousand_names)
    yield Attack(KIND, "--max_new_tokens 1e9", _tokens)


def _lying_png() -> bytes:
    """The head of a PNG of 2^31 - 1 x 2^31 - 1 pixels around the data of a small one."""
    content = bytearray(png(30, 40))
    content[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)
