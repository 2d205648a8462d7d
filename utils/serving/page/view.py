"""What a visitor sees: the image with its masks, a chip for each class, the conversation; and the files to download.

HTML comes from Jinja2 templates with autoescape, so that names and answers are text, never markup.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.common.paths import shortened
from utils.evaluation.metrics import label_map
from utils.reports.colours import Colour
from utils.reports.drawing import overlay, resize_labels, shrunk_size
from utils.reports.pages import render
from utils.serving.answers import Answer, AskedClass
from utils.serving.files import colour_of, draw, file_suffix
from utils.serving.page.visits import Visit
from utils.serving.schema import answer_json, one_json_line

HERE = Path(__file__).parent
VIEW_SIDE = 1280  # pixels of the longest side that the page shows; files have all
DIM = (0, 0, 0, 140)  # RGBA over what a single mask leaves out
TINT = 153  # alpha of a single mask, as in the overlay
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".zip": "application/zip", ".json": "application/json"}
MAX_STEM = 60


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A class of the answer, or a mask without a name."""

    label: str
    state: str  # present, absent or unknown
    note: str = ""  # the probability
    colour: Colour | None = None
    layer: int | None = None  # number of its mask, from 1


@dataclass(frozen=True, kw_only=True)
class Said:
    """A question and its answer, as far as it has come."""

    question: str
    text: str = ""
    remark: str = ""


def chips(answer: Answer) -> list[Chip]:
    """A chip for each mask and for each class that is absent or unknown, in the order of the answer."""
    if answer.question:
        masks = [mask_chip(name, number) for number, name in enumerate(answer.names)]
        return masks + [Chip(label=name, state="absent") for name in answer.absent]
    numbers = {name: number for number, name in enumerate(answer.names)}
    return [class_chip(one, numbers.get(one.label)) for one in answer.classes]


def mask_chip(name: str, number: int, note: str = "") -> Chip:
    """The chip of a mask; `number`: its place in the answer, from 0."""
    label, colour = name or f"mask {number + 1}", colour_of(name, number)
    return Chip(label=label, state="present", note=note, colour=colour, layer=number + 1)


def class_chip(one: AskedClass, number: int | None) -> Chip:
    """The chip of a class asked for; `number`: of its mask, if it has one."""
    note = "" if one.probability is None else f"{one.probability:.2f}"
    if number is not None:
        return mask_chip(one.label, number, note)
    return Chip(label=one.label, state="unknown" if one.present is None else "absent", note=note)


def view_html(visit: Visit) -> str:
    """The image, its masks, the chips and what can be downloaded; "" before there is an image."""
    image, answer = visit.session.image, visit.answer
    if image is None:
        return ""
    height, width = image.shape[:2]
    return render(
        HERE / "view.html.jinja",
        place=visit.place,
        name=visit.name,
        stem=stem_of(visit.name),
        height=height,
        width=width,
        answer=answer,
        chips=chips(answer) if answer else [],
    )


def talk_html(
    said: Sequence[Said], *, under_way: Said | None = None, status: str = "", problem: str = ""
) -> str:
    """The conversation; status: what happens now; problem: why a question was not answered."""
    return render(HERE / "talk.html.jinja", said=said, under_way=under_way, status=status, problem=problem)


def said_in(visit: Visit) -> list[Said]:
    """The conversation about the image so far."""
    return [
        Said(question=question_of(answer), text=answer.text, remark=remark_of(answer))
        for answer in visit.session.answers
    ]


def question_of(answer: Answer) -> str:
    """What was asked, in words or as classes."""
    return answer.question or ", ".join(one.label for one in answer.classes)


def remark_of(answer: Answer) -> str:
    """What there is to say about an answer."""
    return answer.remark if answer.is_complete else "cut: the answer has as many tokens as are allowed"


# ------------------------------------------------------------------------------------ files


def file_of(visit: Visit, name: str) -> bytes | None:
    """The content of one of the files that the page shows or offers; None if there is none of this name."""
    image, answer = visit.session.image, visit.answer
    if image is None:
        return None
    if name == "image.jpg":
        return encoded(Image.fromarray(shown(image)), "JPEG", quality=92)
    if answer is None:
        return None
    if name == "overlay.jpg":
        return encoded(Image.fromarray(shown_overlay(answer, image)), "JPEG", quality=92)
    if found := re.fullmatch(r"mask_([1-9][0-9]{0,5})\.png", name):
        number = int(found[1])
        return layer(answer, image, number - 1) if number <= len(answer.masks) else None
    if name == "overlay.png":
        return encoded(draw(answer, image), "PNG")
    if name == "masks.zip":
        return masks_zip(answer)
    return answer_file(visit, answer, image) if name == "answer.json" else None


def shown(image: np.ndarray) -> np.ndarray:
    """A (height, width, 3) uint8 image as large as the page shows it."""
    height, width = shrunk_size(image, VIEW_SIDE)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def shown_overlay(answer: Answer, image: np.ndarray) -> np.ndarray:
    """All masks over the image, as large as the page shows it; where they overlap the highest logit is shown."""
    small = shown(image)
    colours = [colour_of(name, number) for number, name in enumerate(answer.names)]
    labels = resize_labels(label_map(answer.masks, range(len(answer.masks))), small.shape[:2])
    return overlay(small, labels, np.array(colours, dtype=np.uint8).reshape(-1, 3))


def layer(answer: Answer, image: np.ndarray, number: int) -> bytes:
    """A PNG of one mask to lie over the image: tinted inside, dark outside, with transparency."""
    inside = resize_labels((answer.masks[number] > 0).cpu().numpy(), shrunk_size(image, VIEW_SIDE))
    height, width = inside.shape
    drawn = Image.frombytes("P", (width, height), inside.astype(np.uint8).tobytes())
    drawn.putpalette([*DIM[:3], *colour_of(answer.names[number], number)])
    return encoded(drawn, "PNG", transparency=bytes([DIM[3], TINT]))


def masks_zip(answer: Answer) -> bytes:
    """A PNG of each mask, 255 inside."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, mask in enumerate(answer.found(), start=1):
            archive.writestr(f"mask_{number}{file_suffix(mask.label)}.png", encoded(mask.image(), "PNG"))
    return file.getvalue()


def answer_file(visit: Visit, answer: Answer, image: np.ndarray) -> bytes:
    """The answer as chat.py --json prints it."""
    height, width = image.shape[:2]
    threshold = None if answer.question else visit.session.asking.presence_threshold
    content = answer_json(answer, answer.found(), size=(height, width), file=visit.name, threshold=threshold)
    return (one_json_line(content) + "\n").encode()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def stem_of(name: str) -> str:
    """The name of an image's file without its ending, for the names of downloads."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem).strip("_")
    return shortened(plain, MAX_STEM) or "image"
