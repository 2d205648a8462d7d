"""The best and the worst samples of a report as one page: pictures inside, no scripts, nothing to load."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from utils.reports.best_and_worst import to_jpeg
from utils.reports.drawing import LegendEntry, overlay
from utils.reports.report import Report, Result
from utils.reports.sheet import SheetRow

if TYPE_CHECKING:
    from collections.abc import Sequence


STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #212529; margin: 24px; max-width: 1500px }
h1 { font-size: 22px } h2 { font-size: 18px; margin: 32px 0 4px } h3 { font-size: 15px; margin: 20px 0 8px }
nav a { margin-right: 16px }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 16px }
figure { margin: 0; padding: 10px; border: 1px solid #dee2e6; border-radius: 6px }
.pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px }
.pictures img { width: 100%; display: block; border-radius: 3px }
.pictures span { color: #868e96; font-size: 12px }
figcaption b { font-size: 16px }
.source { color: #868e96; font-size: 12px; overflow-wrap: anywhere }
ul { list-style: none; margin: 6px 0 0; padding: 0; columns: 2 }
li { break-inside: avoid; overflow-wrap: anywhere } li.remark { column-span: all; padding-left: 18px }
.pale { color: #868e96 }
i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px }
"""
# Nothing but what is inside the page, should a file name ever get past the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PICTURE_QUALITY = 85
CLASSES_LISTED = 14  # of a scene


def samples_page(report: Report) -> str:
    """The whole page, of every data set that has pictures."""
    shown = [result for result in report.results if result.worst or result.best]
    links = "".join(
        f'<a href="#d{number}">{html.escape(result.dataset)}</a>' for number, result in enumerate(shown)
    )
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Samples: {html.escape(report.model)}</title><style>{STYLE}</style></head><body>",
        f"<h1>The worst and the best samples of {html.escape(report.model)}</h1><nav>{links}</nav>",
        *(_section(result, number) for number, result in enumerate(shown)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(result: Result, number: int) -> str:
    return "\n".join(
        [
            f'<h2 id="d{number}">{html.escape(result.dataset)}</h2>',
            *_cards("Worst", result.worst),
            *_cards("Best", result.best),
        ]
    )


def _cards(heading: str, rows: Sequence[SheetRow]) -> list[str]:
    if not rows:
        return []
    return [f"<h3>{heading} {len(rows)}</h3>", '<div class="cards">', *map(_card, rows), "</div>"]


def _card(row: SheetRow) -> str:
    pictures = {
        "image": row.image,
        "ground truth": overlay(row.image, row.truth, row.colours),
        "prediction": overlay(row.image, row.prediction, row.colours),
    }
    cells = "".join(
        f'<div><img alt="{name}" src="{_data_uri(picture)}"><span>{name}</span></div>'
        for name, picture in pictures.items()
    )
    left_out = len(row.legend) - CLASSES_LISTED
    entries = [*row.legend[:CLASSES_LISTED]]
    if left_out > 0:
        entries.append(LegendEntry(name=f"and {left_out} more", pale=True))
    return (
        f'<figure><div class="pictures">{cells}</div><figcaption><b>IoU {row.score:.3f}</b> '
        f'<span class="source" title="{html.escape(row.source)}">{html.escape(Path(row.source).name)}</span>'
        f"<ul>{''.join(map(_legend_line, entries))}</ul></figcaption></figure>"
    )


def _legend_line(entry: LegendEntry) -> str:
    pale = ' class="pale"' if entry.pale else ""
    text = f"<span{pale}>{html.escape(entry.name)}</span>"
    if entry.note:
        text += f' <span class="pale">{html.escape(entry.note)}</span>'
    if entry.colour is None:
        return f'<li class="remark">{text}</li>'
    red, green, blue = entry.colour
    return f'<li><i style="background:rgb({red},{green},{blue})"></i>{text}</li>'


def _data_uri(picture: np.ndarray) -> str:
    data = to_jpeg(Image.fromarray(picture), PICTURE_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
