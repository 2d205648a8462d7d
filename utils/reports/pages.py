"""HTML pages that need no other file: Jinja2 templates beside the code, images inside the page, no scripts.

Every page extends page.html.jinja. Whatever a template prints is escaped (autoescape), so names and texts of the data
cannot become markup; page.html.jinja also forbids the browser to load or run anything.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from utils.common.terminal import printable

BASE = Path(__file__).parent  # of page.html.jinja


def render(template: Path, **values: object) -> str:
    """The page that a template makes of `values`. Raises jinja2.UndefinedError for a value that is missing."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, BASE]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_control,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def _without_control(value: object) -> object:
    """Text of the data without control characters, which also turn the direction of what is written around them."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def data_url(image: Image.Image, format: str = "JPEG", **options: Any) -> str:
    """The image as a data URL; `options` are those of Pillow's `save` for the format."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
