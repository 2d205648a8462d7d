"""Images that attack their decoders: tags, chunks, scans and frames without end, and formats that are programs."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image

from benchmarks.attack.desk import Attack, Desk, chat, check, coco
from benchmarks.attack.requests import apple_icon, ask, data_url, icon, query
from benchmarks.attack.work import png

KIND = "images"
MANY = 2**16 - 1  # tags of a directory, at most


def exif_of_tags(size: int) -> bytes:
    """An EXIF block whose tags all lead to the same bytes: with 10 MB, Pillow would take 650 GB for it."""
    tags = b"".join(struct.pack("<HHII", tag, 1, size, 8) for tag in range(1, MANY))
    block = b"II*\0" + struct.pack("<IH", 8, MANY - 1) + tags + bytes(4)
    return block + bytes(max(size + 8 - len(block), 0))


def tiff_of_tags(size: int) -> bytes:
    """A TIFF of 16 x 16 pixels with such a directory."""
    own = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    tags = b"".join(
        struct.pack("<HHII", tag, 4, 1, own[tag]) if tag in own else struct.pack("<HHII", tag, 1, size, 8)
        for tag in range(1, MANY)
    )
    block = b"II*\0" + struct.pack("<IH", 8, MANY - 1) + tags + bytes(4)
    return block + bytes(max(size + 8 - len(block), 0))


def tiff_of_directories(count: int, *, loops: bool = False) -> bytes:
    """A sound TIFF with so many more directories behind it, each of one tag; the last leads back to the second."""
    file = io.BytesIO()
    Image.new("L", (40, 30), 1).save(file, "TIFF")
    content = bytearray(file.getvalue() + bytes(len(file.getvalue()) % 2))
    (start,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, start)
    place = len(content)
    struct.pack_into("<I", content, start + 2 + 12 * number, place)
    for index in range(count):
        after = place + 18 * (index + 1)
        if index == count - 1:
            after = place if loops else 0
        content += struct.pack("<HHHIII", 1, 254, 4, 1, 0, after)
    return bytes(content)


def tiff_of_strips() -> bytes:
    """A TIFF whose strips lie beyond the file and are of 4 GB each."""
    entries = [(256, 4, 1, 40), (257, 4, 1, 30), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 2**31, 8),
               (277, 3, 1, 60_000), (278, 4, 1, 0), (279, 4, 2**31, 8)]  # fmt: skip
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(entries))
        + b"".join(struct.pack("<HHII", *one) for one in entries)
        + bytes(4)
    )


def jpeg(width: int = 40, height: int = 30, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "JPEG", **options)
    return file.getvalue()


def jpeg_that_says(width: int, height: int) -> bytes:
    """A small JPEG whose head says another size."""
    content = bytearray(jpeg())
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)


def jpeg_of_scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = jpeg(side, side, progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def jpeg_of_exif(size: int) -> bytes:
    """A JPEG with an EXIF block in several segments; without a JFIF head, Pillow looks at it at once."""
    block, content = exif_of_tags(size), jpeg()
    parts = [block[place : place + 65_000] for place in range(0, len(block), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    head = content.index(b"\xff\xe0")
    (length,) = struct.unpack_from(">H", content, head + 2)
    return content[:head] + segments + content[head + 2 + length :]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(chunks: bytes) -> bytes:
    return png(30, 40, text=chunks)


def png_of_exif(size: int) -> bytes:
    return png_of(chunk(b"eXIf", exif_of_tags(size)))


def text_bombs(count: int) -> bytes:
    packed = zlib.compress(bytes(2**20 - 100), 9)
    return b"".join(chunk(b"zTXt", b"key%d\0\0" % number + packed) for number in range(count))


def saved(kind: str, count: int = 1, side: int = 16, **options: object) -> bytes:
    """An image of many frames."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (side, side), (number % 200, 0, 0)) for number in range(count)]
    frames[0].save(file, kind, save_all=count > 1, append_images=frames[1:], **options)
    return file.getvalue()


def gif_that_says(width: int, height: int) -> bytes:
    content = bytearray(saved("GIF"))
    struct.pack_into("<HH", content, 6, width, height)
    return bytes(content)


def jpeg2000_that_says(width: int, height: int, *, components: int = 0) -> bytes:
    """A JPEG 2000 code stream that says another size, or so many components."""
    content = bytearray(saved("JPEG2000", no_jp2=True))
    place = content.index(b"\xff\x51")
    struct.pack_into(">II", content, place + 6, width, height)
    struct.pack_into(">II", content, place + 22, width, height)  # one tile
    if components:
        struct.pack_into(">H", content, place + 38, components)
    return bytes(content)


def bitmap(side: int) -> bytes:
    """A BMP of runs, 255 pixels in two bytes."""
    row = b"\xff\0" * (side // 255) + bytes((side % 255, 0)) * bool(side % 255) + b"\0\0"
    rows = row * side + b"\0\1"
    palette = bytes(1024)
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + head + palette + rows


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(%pipe%touch CANARY) (w) file\nshowpage\n%%EOF\n"
)
PHOTOSHOP = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(9_000)
WITH_PREVIEW = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(POSTSCRIPT)) + bytes(18) + POSTSCRIPT
IMAGES: dict[str, Callable[[], bytes]] = {
    "a TIFF of 65,534 tags over the same 8 MB": lambda: tiff_of_tags(8_000_000),
    "a TIFF of a million directories": lambda: tiff_of_directories(1_000_000),
    "a TIFF whose directories lead in a circle": lambda: tiff_of_directories(1_000, loops=True),
    "a TIFF of strips beyond its end": tiff_of_strips,
    "a JPEG with EXIF of 65,534 tags over the same 8 MB": lambda: jpeg_of_exif(8_000_000),
    "a PNG with EXIF of 65,534 tags over the same 8 MB": lambda: png_of_exif(8_000_000),
    "a WebP with EXIF of 65,534 tags over the same 8 MB": lambda: saved("WEBP", exif=exif_of_tags(8_000_000)),
    "a JPEG that says 65,500 x 65,500 pixels": lambda: jpeg_that_says(65_500, 65_500),
    "a JPEG of 400 scans of 9,900 x 9,900 pixels": lambda: jpeg_of_scans(400, 9_900),
    "a PNG of 60 comments of a megabyte": lambda: png_of(text_bombs(60)),
    "a PNG of 1,000 comments of a megabyte": lambda: png_of(text_bombs(1_000)),
    "a PNG with a colour profile of 256 MB": lambda: png_of(
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**28), 9))
    ),
    "a PNG of 200,000 empty chunks": lambda: png_of(chunk(b"abCd", b"") * 200_000),
    "an APNG of 3,000 frames": lambda: saved("PNG", 3_000),
    "a WebP of 3,000 frames": lambda: saved("WEBP", 3_000),
    "a GIF of 20,000 frames": lambda: saved("GIF", 20_000, 4),
    "a GIF that says 65,535 x 65,535 pixels": lambda: gif_that_says(65_535, 65_535),
    "a JPEG 2000 that says 2^31 x 2^31 pixels": lambda: jpeg2000_that_says(2**31, 2**31),
    "a JPEG 2000 that says 9,900 x 9,900 pixels": lambda: jpeg2000_that_says(9_900, 9_900),
    "a JPEG 2000 of 16,000 components": lambda: jpeg2000_that_says(9_900, 9_900, components=16_000),
    "an AVIF of 40 frames": lambda: saved("AVIF", 40),
    "an MPO of 200 images": lambda: saved("MPO", 200),
    "a BMP of 9,900 x 9,900 pixels in runs": lambda: bitmap(9_900),
    "a Windows icon around 13,000 x 13,000 pixels": lambda: icon(png(13_000, 13_000)),
    "an Apple icon around 13,000 x 13,000 pixels": lambda: apple_icon(png(13_000, 13_000)),
    "a Photoshop file": lambda: PHOTOSHOP,
    "PostScript that runs a command": lambda: POSTSCRIPT,
    "PostScript with a preview": lambda: WITH_PREVIEW,
    "an SVG that names a file": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a FITS file that inflates": lambda: b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2_800),
}  # fmt: skip


def _image(name: str, command: str, desk: Desk) -> int:
    """The image as that of a question, of own data, as a label, in a request, uploaded to the page."""
    content = IMAGES[name]().replace(b"CANARY", str(desk.canary).encode())
    if command == "server":
        return ask(desk, *[query(image=data_url(content))] * 3)
    if command == "label":
        for folder in ("images", "labels"):
            (desk.here / "mine" / folder).mkdir(parents=True)
        (desk.here / "a.png").rename(desk.here / "mine/images/a.png")
        (desk.here / "mine/labels/a.tif").write_bytes(content)
        (desk.here / "mine/classes.txt").write_text("ignore\ndog\n")
        return check("own_sem:./mine")
    (desk.here / "evil.png").write_bytes(content)
    if command == "page":
        return _uploaded(content, desk)
    (desk.here / "train.json").write_text(json.dumps(coco(["dog"], ["a.png", "evil.png"])))
    return check("own_coco:.") if command == "check" else chat(desk.model, image="evil.png")


def _uploaded(content: bytes, desk: Desk) -> int:
    from model.checkpoints.load import load_model
    from utils.serving.answers import Asking
    from utils.serving.batching import Batcher
    from utils.serving.page.actions import Actions

    batcher = Batcher(load_model(desk.model)[0], max_batch=2, max_waiting=4)
    shown = Actions(Asking(max_new_tokens=4), batcher, max_pixels=12_000_000).open(
        "visitor", content, "evil.png"
    )
    print(shown.talk[-300:] if shown.view is None else "opened")
    return 0 if shown.view is not None else 2


def attacks() -> Iterator[Attack]:
    for name in IMAGES:
        commands = ["chat", "check", "server"]
        commands += ["label"] if "TIFF" in name or "BMP" in name or "PostScript" in name else []
        commands += ["page"] if "EXIF" in name or "PostScript" in name or "icon" in name else []
        for command in commands:
            quick = command == "check" and name.startswith(("a TIFF of 65", "PostScript that"))
            yield Attack(KIND, f"{name}, {command}", partial(_image, name, command), quick)
