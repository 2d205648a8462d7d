"""A report as tables: for the terminal (80 columns), report.md (Markdown) and spreadsheets (CSV)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from utils.common.terminal import PrintableText as Text
from utils.reports.markdown import code, escaped
from utils.reports.report import SHOWN, Report, Result

# Metrics that the terminal does not show.
MARKDOWN_ONLY = re.compile(
    r"^p@|_50px$|_all$|_target$|_per_image$|(mean|pixel)_accuracy$|^ap_(small|medium|large)$|^ar100$"
)
# Headings of the wide tables, whose numbers are in percent as in papers.
TITLES = {
    "miou": "mIoU", "mean_accuracy": "mAcc", "pixel_accuracy": "aAcc", "giou": "gIoU", "ciou": "cIoU",
    "map": "mAP", "f1": "F1", "n_acc": "N-acc", "t_acc": "T-acc", "giou_50px": "gIoU (50 px)",
    "ciou_50px": "cIoU (50 px)", "t_acc_50px": "T-acc (50 px)", "exact_match": "EM", "rouge_l": "ROUGE-L",
    "p@0.5": "P@0.5", "p@0.6": "P@0.6", "p@0.7": "P@0.7", "p@0.8": "P@0.8", "p@0.9": "P@0.9",
    "recall_all": "recall (all pairs)", "giou_target": "gIoU (with target)", "ciou_target": "cIoU (with target)",
    "hallucinated_per_image": "hallucinated per image", "forgotten_per_image": "forgotten per image",
    "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium", "ap_large": "AP large",
    "ar100": "AR100", "see_accuracy": "See", "roc_auc": "ROC-AUC", "ap": "AP", "oiou": "oIoU", "mrr": "mRR",
    "riou": "rIoU",
}  # fmt: skip
SECTION_TITLES = {"no_target": {"accuracy": "N-acc", "accuracy_50px": "N-acc (50 px)"}}
# Columns of a class in report.md; the CSV has all that there are.
CLASS_COLUMNS = {
    "iou": "IoU", "accuracy": "accuracy", "num_images": "images", "presence_precision": "precision",
    "presence_recall": "recall", "presence_f1": "F1", "presence_ap": "AP", "ap": "AP of instances",
}  # fmt: skip
# What a spreadsheet may take for a formula begins so, in full width as well; and what `as_text` writes.
FORMULA_STARTS = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20", "'")
# What is counted, where a sample is an image with several.
COUNT_NAMES = ("num_expressions", "num_questions", "num_references")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number to reach, for the demo and for continuous integration."""

    metric: str  # "semantic.miou", "baseline.semantic.miou", "minutes_train"
    bar: float
    goal: float | None = None
    at_most: bool = False  # lower is better

    def is_met(self, value: float) -> bool:
        """False also for a value that was not measured."""
        return value <= self.bar if self.at_most else value >= self.bar

    def show(self, bound: float | None) -> str:
        return "" if bound is None else f"{'<=' if self.at_most else '>='} {bound:g}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of a table; the columns from `num_left` on are numbers, which are right-aligned."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_left: int = 1


def results_table(report: Report, *, brief: bool = False) -> Table:
    """A row for each metric of SHOWN of each data set; `before` is the baseline's number on the same data set.

    brief: without what only report.md shows, so that a row fits into 80 columns.
    """
    earlier = {result.dataset: result for result in report.baseline.results} if report.baseline else {}
    rows = []
    for result in report.results:
        for section, numbers in result.sections.items():
            names = shown_metrics(section, numbers)
            if brief:  # a section is never left out as a whole
                names = [name for name in names if not MARKDOWN_ONLY.search(name)] or names
            for name in names:
                interval = _interval(numbers, name)
                row = [
                    f"{section}.{name}", result.dataset, _count(result, numbers), _show(numbers.get(name)), interval,
                ]  # fmt: skip
                if report.baseline is not None:
                    before = earlier.get(result.dataset)
                    row.append(_show(before.sections.get(section, {}).get(name) if before else None))
                rows.append(tuple(row))
    headings = ["metric", "data set", "n" if brief else "samples", "value", "95 % CI"]
    if report.baseline is not None:
        headings.append("before")
    return Table(headings=tuple(headings), rows=rows, num_left=2)


def wide_tables(report: Report) -> dict[str, Table]:
    """A table for each section as papers print it: a row for each data set, numbers in percent."""
    tables: dict[str, Table] = {}
    for section in dict.fromkeys(name for result in report.results for name in result.sections):
        having = [
            (result, result.sections[section]) for result in report.results if section in result.sections
        ]
        names = [name for name in SHOWN.get(section, ()) if any(name in numbers for _, numbers in having)]
        if not names:
            continue
        titles = TITLES | SECTION_TITLES.get(section, {})
        headings = ("data set", "samples", *(titles.get(name, name.replace("_", " ")) for name in names))
        rows = [
            (result.dataset, _count(result, numbers), *(_percent(numbers, name) for name in names))
            for result, numbers in having
        ]
        tables[section] = Table(headings=headings, rows=rows)
    return tables


def remarks(report: Report) -> list[str]:
    """For each data set that is not covered as a whole, which part the numbers are about."""
    return [
        f"{result.dataset}: {about}"
        for result in report.results
        if (about := _about_data(result, brief=True))
    ]


def targets_table(report: Report, targets: Sequence[Target]) -> Table:
    """The targets, and whether they are met."""
    rows = []
    for target in targets:
        value = report.value(target.metric)
        verdict = "yes" if target.is_met(value) else "no"
        rows.append((target.metric, _show(value), target.show(target.bar), target.show(target.goal), verdict))
    return Table(headings=("target", "value", "required", "goal", "met"), rows=rows)


def classes_table(result: Result) -> Table:
    """The numbers of each class that was counted, the best IoU first."""
    counted = {
        name: row for name, row in result.per_class.items() if not math.isnan(row.get("iou", math.nan))
    }
    ranked = sorted(counted.items(), key=lambda item: (-item[1]["iou"], item[0]))
    columns = [name for name in CLASS_COLUMNS if any(name in row for row in counted.values())]
    return Table(
        headings=("class", *(CLASS_COLUMNS[name] for name in columns)),
        rows=[(name, *(_show(row.get(column)) for column in columns)) for name, row in ranked],
    )


def classes_csv(result: Result) -> str:
    """Every number of every class, in the order of the class list; empty where nothing was counted."""
    columns = list(dict.fromkeys(column for row in result.per_class.values() for column in row))
    stream = io.StringIO()
    # All text in quotation marks: else a carriage return in a name would begin a row.
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["class", *map(as_text, columns)])
    for name, row in result.per_class.items():
        values = (row.get(column, math.nan) for column in columns)
        writer.writerow([as_text(name), *("" if math.isnan(value) else value for value in values)])
    return stream.getvalue()


def as_text(name: str) -> str:
    """A name as a cell that spreadsheets take for text: one that begins like a formula gets an apostrophe in front.

    "=1+1" becomes "'=1+1", and a name that begins with an apostrophe gets one more, so that `from_text` restores all.
    """
    return f"'{name}" if name.startswith(FORMULA_STARTS) else name


def from_text(cell: str) -> str:
    """The name that `as_text` was given."""
    return cell[1:] if cell.startswith("'") else cell


def print_report(report: Report, targets: Sequence[Target] = (), console: Console | None = None) -> None:
    """Print the results in at most 80 columns, the targets, and which part of the data is left out."""
    console = console or Console()
    width = min(console.width, 80)
    if report.model:
        console.print(Text(report.model, style="bold"), width=width)
    tables = [results_table(report, brief=True)]
    if targets:
        tables.append(targets_table(report, targets))
    for table in tables:
        print_table(table, console)
    for line in remarks(report):
        console.print(Text(line, style="yellow"), width=width)


def print_table(table: Table, console: Console) -> None:
    """Print a table in at most 80 columns: long text wraps, numbers never do."""
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, heading in enumerate(table.headings):
        is_text = index < table.num_left
        drawn.add_column(
            heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
        )
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn, width=min(console.width, 80))


def to_markdown(
    report: Report,
    targets: Sequence[Target] = (),
    images: Sequence[str] = (),
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """report.md: results, targets, links, images, tables for papers, data, protocol, classes.

    images, links: files relative to the report; a link is its text and its file.
    """
    parts = ["# Evaluation", f"Model: {code(report.model)}", markdown_table(results_table(report))]
    if remark := report.facts.get("remark"):
        parts.insert(1, f"**{escaped(str(remark))}**")
    if targets:
        parts += ["## Targets", markdown_table(targets_table(report, targets))]
    parts += [f"[{text}]({file})" for text, file in links]
    parts += [f"![{Path(image).stem}]({image})" for image in images]
    for section, table in wide_tables(report).items():
        parts += [f"## {section.replace('_', ' ').capitalize()}, percent", markdown_table(table)]
    if lines := data_lines(report):
        parts += ["## Data", "\n".join(lines)]
    parts += ["## Protocol", _bullets(report.protocol)]
    if report.facts:
        parts += ["## Facts", _bullets(report.facts)]
    for result in report.results:
        if names := result.sections.get("hallucinated_names"):
            parts += [f"## Hallucinated names on {code(result.dataset)}", _bullets(names)]
        if result.per_class:
            parts += [f"## Classes of {code(result.dataset)}", markdown_table(classes_table(result))]
    return "\n\n".join(parts) + "\n"


def data_lines(report: Report) -> list[str]:
    """Markdown bullets: which part of each data set the numbers are about, and examples of what was left out."""
    lines = []
    for result in report.results:
        if about := _about_data(result, brief=False):
            lines.append(f"- {code(result.dataset)}: {escaped(about)}")
            lines += [f"  - left out: {code(example)}" for example in result.data.get("examples", ())]
    return lines


def _about_data(result: Result, *, brief: bool) -> str:
    parts = [result.data["summary"]] if result.data and (result.data["left_out"] or not brief) else []
    available = result.data.get("num_samples", result.num_samples)
    if result.num_samples < available:
        parts.append(f"{result.num_samples} of {available} samples evaluated (max_samples)")
    return ". ".join([*parts, *result.notes])


def markdown_table(table: Table) -> str:
    """The table in Markdown; cells are escaped."""
    rule = tuple("---" if index < table.num_left else "---:" for index in range(len(table.headings)))
    rows = [tuple(escaped(cell) for cell in row) for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.headings, rule, *rows))


def _bullets(values: Mapping[str, object]) -> str:
    return "\n".join(f"- {escaped(name)}: {escaped(_bullet(value))}" for name, value in values.items())


def _bullet(value: object) -> str:
    if value is None:
        return "not set"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def shown_metrics(section: str, numbers: Mapping[str, float]) -> list[str]:
    """The metrics of a section that tables show: those in SHOWN, or all of a section that is not in it."""
    return [name for name in SHOWN.get(section, tuple(numbers)) if name in numbers]


def _count(result: Result, numbers: Mapping[str, float]) -> str:
    """The number of samples, expressions or questions that a section's numbers are about."""
    return str(next((numbers[name] for name in COUNT_NAMES if name in numbers), result.num_samples))


def _interval(numbers: Mapping[str, float], name: str) -> str:
    low, high = (numbers.get(name + end, math.nan) for end in ("_low", "_high"))
    return "" if math.isnan(low) else f"{low:.2f}-{high:.2f}"


def _percent(numbers: Mapping[str, float], name: str) -> str:
    """ "42.0 (40.1-43.9)", with the confidence interval where there is one; counts, also of an image, as they are."""
    value = numbers.get(name)
    if value is None or isinstance(value, int) or math.isnan(value) or name.endswith("_per_image"):
        return _show(value)
    low, high = (100 * numbers.get(name + end, math.nan) for end in ("_low", "_high"))
    return f"{100 * value:.1f}" + ("" if math.isnan(low) else f" ({low:.1f}-{high:.1f})")
