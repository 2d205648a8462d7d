"""A report as tables: for the terminal in 80 columns, for report.md in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from utils.report import Report, Result

# What the tables show of each section; report.json holds everything.
SHOWN: dict[str, tuple[str, ...]] = {
    "semantic": ("miou", "mean_accuracy", "pixel_accuracy"),
    "presence": ("accuracy", "precision", "recall"),
    "referring": ("giou", "ciou"),
    "generalized": ("giou", "ciou", "t_acc"),
    "no_target": ("accuracy",),
    "reasoning": ("giou", "ciou"),
    "vqa": ("exact_match",),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number to reach, for the table of a demo or of continuous integration."""

    metric: str  # "semantic.miou", "baseline.semantic.miou", "minutes_train"
    bar: float
    goal: float | None = None
    at_most: bool = False  # the smaller the better

    def is_met(self, value: float) -> bool:
        """False also for a value that was not measured."""
        return value <= self.bar if self.at_most else value >= self.bar

    def show(self, bound: float | None) -> str:
        return "" if bound is None else f"{'<=' if self.at_most else '>='} {bound:g}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells to be drawn; columns from `num_left` on are numbers and stand at the right."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    num_left: int = 1


def results_table(report: Report) -> Table:
    """Data set by data set what SHOWN names; `before` is the baseline's number on the same data set."""
    earlier = {result.dataset: result for result in report.baseline.results} if report.baseline else {}
    rows = []
    for result in report.results:
        for section, numbers in result.sections.items():
            for name in SHOWN.get(section, tuple(numbers)):
                count = numbers.get("num_expressions", result.num_samples)
                row = [f"{section}.{name}", result.dataset, str(count), _show(numbers.get(name))]
                if report.baseline is not None:
                    before = earlier.get(result.dataset)
                    row.append(_show(before.sections.get(section, {}).get(name) if before else None))
                rows.append(tuple(row))
    before = ("before",) if report.baseline is not None else ()
    return Table(headings=("metric", "data set", "samples", "value", *before), rows=rows, num_left=2)


def targets_table(report: Report, targets: Sequence[Target]) -> Table:
    """What was to be reached, and whether it was."""
    rows = []
    for target in targets:
        value = report.value(target.metric)
        verdict = "yes" if target.is_met(value) else "no"
        rows.append((target.metric, _show(value), target.show(target.bar), target.show(target.goal), verdict))
    return Table(headings=("to reach", "value", "bar", "goal", "reached"), rows=rows)


def classes_table(result: Result) -> Table:
    """The IoU of each class that was counted, the best first."""
    ranked = sorted(result.per_class.items(), key=lambda item: (-item[1], item[0]))
    return Table(headings=("class", "IoU"), rows=[(name, _show(value)) for name, value in ranked])


def print_report(report: Report, targets: Sequence[Target] = (), console: Console | None = None) -> None:
    """The results in at most 80 columns, and what was to be reached."""
    console = console or Console()
    width = min(console.width, 80)
    if report.model:
        console.print(Text(report.model, style="bold"), width=width)
    tables = [results_table(report)]
    if targets:
        tables.append(targets_table(report, targets))
    for table in tables:
        drawn = RichTable(box=box.SIMPLE_HEAD)
        for index, heading in enumerate(table.headings):
            # A long data set entry wraps; numbers never do.
            is_text = index < table.num_left
            drawn.add_column(
                heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
            )
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn, width=width)


def to_markdown(report: Report, targets: Sequence[Target] = (), pictures: Sequence[str] = ()) -> str:
    """report.md: the numbers, what was to be reached, pictures, the protocol, the IoU of each class."""
    parts = ["# Evaluation", f"Model: `{report.model}`", _markdown(results_table(report))]
    if targets:
        parts += ["## To reach", _markdown(targets_table(report, targets))]
    parts += [f"![{Path(picture).stem}]({picture})" for picture in pictures]
    parts += ["## Protocol", _bullets(report.protocol)]
    if report.facts:
        parts += ["## Facts", _bullets(report.facts)]
    for result in report.results:
        if result.per_class:
            parts += [f"## IoU of each class, `{result.dataset}`", _markdown(classes_table(result))]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    rule = tuple("---" if index < table.num_left else "---:" for index in range(len(table.headings)))
    # A data set entry holds "|", which would end a cell.
    rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.headings, rule, *rows))


def _bullets(values: Any) -> str:
    lines = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values.values())
    return "\n".join(f"- {name}: {line}" for name, line in zip(values, lines, strict=True))


def _show(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
