"""samples.html: the worst and the best samples of a report on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from utils.reports.drawing import LegendEntry, overlay
from utils.reports.pages import data_url, render
from utils.reports.report import Report
from utils.reports.sheet import SheetRow

TEMPLATE = Path(__file__).with_name("samples_page.html.jinja")
JPEG: dict[str, Any] = {
    "quality": 85,
    "subsampling": 0,
}  # without chroma subsampling, which blurs the outlines
CLASSES_LISTED = 14  # of a sample


def samples_page(report: Report) -> str:
    """The page, of every data set that has samples to show."""
    datasets = [
        {"name": result.dataset, "worst": cards(result.worst), "best": cards(result.best)}
        for result in report.results
        if result.worst or result.best
    ]
    return render(TEMPLATE, model=report.model, datasets=datasets)


def cards(rows: Sequence[SheetRow]) -> list[dict[str, Any]]:
    """What the template shows of each sample."""
    return [
        {
            "images": [(name, data_url(image, **JPEG)) for name, image in images_of(row).items()],
            "score": row.score,
            "source": row.source,
            "name": Path(row.source).name,
            "legend": shortened(row.legend),
        }
        for row in rows
    ]


def images_of(row: SheetRow) -> dict[str, Image.Image]:
    """The images of a sample by what they show."""
    arrays = {
        "image": row.image,
        "ground truth": overlay(row.image, row.truth, row.colours),
        "prediction": overlay(row.image, row.prediction, row.colours),
    }
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def shortened(legend: Sequence[LegendEntry]) -> list[LegendEntry]:
    """The first entries, and how many more there are."""
    left_out = len(legend) - CLASSES_LISTED
    more = [LegendEntry(name=f"and {left_out} more", pale=True)] if left_out > 0 else []
    return [*legend[:CLASSES_LISTED], *more]
