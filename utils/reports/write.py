"""Writing a report: report.json and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from utils.common.files import write_whole
from utils.common.paths import file_stems
from utils.reports.confusion_plot import draw_confusion
from utils.reports.report import REPORT_FILE, Report
from utils.reports.samples_page import samples_page
from utils.reports.tables import Target, classes_csv, to_markdown


def write_report(
    report: Report, folder: str | Path, targets: Sequence[Target] = (), images: Sequence[str] = ()
) -> Path:
    """Write report.json and the files beside it. An interrupted write leaves the old files as they were.

    images: files relative to `folder`, shown in report.md before those that are drawn here.

    Returns:
        the path of report.json.
    """
    folder = Path(folder)
    stems = file_stems(result.dataset for result in report.results)
    images = list(images)
    for result in report.results:
        stem = stems[result.dataset]
        if result.per_class:
            write_whole(folder / f"per_class_{stem}.csv", classes_csv(result))
        if result.confusion is not None:
            name = f"confusion_{stem}.png"
            draw_confusion(result.confusion, tuple(result.per_class), folder / name, title=result.dataset)
            images.append(name)
    links = []
    if any(result.worst or result.best for result in report.results):
        write_whole(folder / "samples.html", samples_page(report))
        links.append(("The worst and the best samples", "samples.html"))
    write_whole(folder / "report.md", to_markdown(report, targets, images, links))
    return write_whole(folder / REPORT_FILE, json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
