"""The table of an ablation: a row for each number, a column for each variant."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from utils.reports.report import Report
from utils.reports.tables import Table
from utils.toy.study import VARIANTS, Study


@dataclass(frozen=True)
class Column:
    """A number of the table; `scale` 100 shows a fraction in percent."""

    title: str
    metric: str
    scale: int = 100


PRESENT_MIOU = (
    "present_miou"  # of the classes that some image shows; a hallucinated class has no weight of its own
)
COLUMNS = (
    Column("mIoU", "semantic.miou"),
    Column("mIoU of classes shown", PRESENT_MIOU),
    Column("presence accuracy", "presence.accuracy"),
    Column("presence precision", "presence.precision"),
    Column("presence recall", "presence.recall"),
    Column("hallucinated classes per image", "presence.hallucinated_per_image", scale=1),
    Column("forgotten classes per image", "presence.forgotten_per_image", scale=1),
    Column("referring cIoU", "referring.ciou"),
    Column("gRefCOCO cIoU", "generalized.ciou"),
    Column("N-acc", "no_target.accuracy"),
    Column("reasoning gIoU", "reasoning.giou"),
)


def results(study: Study, variants: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """For each variant the values of each metric, one for each finished seed, in the order of the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for variant in variants:
        reports = [report for seed in seeds if (report := study.report(variant, seed)) is not None]
        found[variant] = {
            column.metric: [value_of(report, column.metric) for report in reports] for column in COLUMNS
        }
    return found


def value_of(report: Report, metric: str) -> float:
    """A number of a report.

    The mIoU of a report, as in published evaluations, is the mean over the classes of ground truth or prediction: a
    single image in which an absent class is seen adds a class whose IoU is 0.
    """
    if metric != PRESENT_MIOU:
        return report.value(metric)
    rows = next((result.per_class.values() for result in report.results if "semantic" in result.sections), ())
    ious = [row["iou"] for row in rows if row["true_pixels"]]
    return statistics.fmean(ious) if ious else math.nan


def cell(values: Sequence[float], scale: int) -> str:
    """ "71.2 ± 0.4": mean and sample standard deviation; without a spread where there is one value."""
    known = [scale * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    digits = 1 if scale == 100 else 2
    text = f"{statistics.fmean(known):.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def results_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """A row for each metric and a column for each variant, by its number."""
    numbers = {variant: list(VARIANTS).index(variant) + 1 for variant in found}
    counts = {variant: max(map(len, columns.values()), default=0) for variant, columns in found.items()}
    rows = [("seeds", *(str(counts[variant]) for variant in found))]
    rows += [
        (column.title, *(cell(found[variant][column.metric], column.scale) for variant in found))
        for column in COLUMNS
    ]
    return Table(headings=("", *(f"({numbers[variant]})" for variant in found)), rows=rows)


def batched(names: Iterable[str], size: int) -> Iterator[list[str]]:
    names = list(names)
    for start in range(0, len(names), size):
        yield names[start : start + size]


def legend(variants: Sequence[str]) -> list[str]:
    return [
        f"({number}) {variant}: {VARIANTS[variant].title}"
        for number, variant in enumerate(VARIANTS, start=1)
        if variant in variants
    ]
