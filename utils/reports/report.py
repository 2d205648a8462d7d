"""Report and Result: the numbers of an evaluation, and report.json.

report.json, schema version 2 (numbers are fractions between 0 and 1; null: not measured):

    schema_version   2
    model            the folder that was evaluated
    protocol         settings that the numbers depend on: {"answers": "generated" or "teacher_forced", ...}
    semantic         {"dataset", "num_samples", "miou", "mean_accuracy", "pixel_accuracy", ...}
    presence         {..., "accuracy", "balanced_accuracy", "precision", "recall", "f1", "num_pairs",
                     "hallucinated_per_image", "forgotten_per_image" (classes, a count)}
    instances        {..., "ap", "ap50", "ap75", "ap_small", ..., "ar100"}; COCO's, of data that have instances
    referring        {..., "giou", "ciou"}
    generalized      {..., "giou", "ciou", "n_acc", "t_acc"}; giou_50px etc.: unions below 50 px are empty
    no_target        {..., "accuracy" (N-acc), "accuracy_50px", "see_accuracy"; "roc_auc", "ap" where measured}
    robust           {..., "miou", "oiou", "mrr", "riou"}; where references have sentences with and without a target
    reasoning        {..., "giou", "ciou"}
    multi            {..., "giou", "ciou", "count_accuracy"}
    vqa              {..., "exact_match"}
    datasets         for each data set {"dataset", "task", "num_samples", "sections", "per_class", "data", "notes"}
    baseline         the same sections of the model before training; missing when it was not evaluated
    timings          {"seconds": {data set: seconds}}, the only part that differs between two identical runs
    anything else    facts that the caller added, such as "minutes_train", or "remark": a sentence about all of it

A section at the top level is that of the first data set, in the order given, that has it. Main numbers have their
95 % confidence interval beside them, as NAME_low and NAME_high. `per_class` has the numbers of each class that was
counted: {"sky": {"iou": 0.9, ...}}; version 1 had the IoU alone. `data` says how much of what is listed could be
used: {"unit": "images", "num_listed": 10, "num_used": 2, "left_out": {"missing": 8}, "examples": ["path: reason"],
"num_samples": 2 before --max_samples, "summary": "2 of 10 images; 8 missing"}. `notes` are sentences about parts of
the data that the numbers do not cover.

Files beside it: report.md; per_class_STEM.csv and confusion_STEM.png of semantic data sets; samples.html, the worst
and the best samples with their images. STEM is the data set's entry as a file name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.files import is_regular, read_json

if TYPE_CHECKING:
    import numpy as np

    from utils.reports.sheet import SheetRow

SCHEMA_VERSION = 2
REPORT_FILE = "report.json"

MASK_METRICS = ("giou", "ciou", "p@0.5", "p@0.6", "p@0.7", "p@0.8", "p@0.9")
# What the tables show of each section; report.json holds everything.
SHOWN: dict[str, tuple[str, ...]] = {
    "semantic": ("miou", "mean_accuracy", "pixel_accuracy"),
    "instances": ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100"),
    "presence": (
        "accuracy",
        "precision",
        "recall",
        "f1",
        "map",
        "recall_all",
        "hallucinated_per_image",
        "forgotten_per_image",
    ),
    "calibration": ("threshold", "f1", "f1_as_decoded"),
    "free_names": ("exact", "near", "repeated", "hallucinated", "hallucination_rate", "unanswered"),
    "hallucinated_names": (),  # names are no metrics; report.md lists them
    "referring": MASK_METRICS,
    "generalized": (
        "giou",
        "ciou",
        "t_acc",
        "giou_50px",
        "ciou_50px",
        "t_acc_50px",
        "giou_target",
        "ciou_target",
    ),
    "no_target": ("accuracy", "accuracy_50px", "see_accuracy", "roc_auc", "ap"),
    "robust": ("miou", "oiou", "mrr", "riou"),
    "reasoning": MASK_METRICS,
    "reasoning_short": ("giou", "ciou"),
    "reasoning_long": ("giou", "ciou"),
    "multi": ("giou", "ciou", "count_accuracy"),
    "vqa": ("exact_match", "rouge_l"),
}

Section = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of one data set."""

    dataset: str  # the entry as given: "refcoco|unc|val"
    task: str
    num_samples: int
    sections: Mapping[str, Section]
    per_class: Mapping[str, Section] = field(default_factory=dict)  # of every class that was counted
    data: Mapping[str, Any] = field(
        default_factory=dict
    )  # how much of what is listed could be used; see above
    notes: tuple[str, ...] = ()  # parts of the data that the numbers do not cover
    seconds: float = 0.0
    # Not part of report.json:
    confusion: np.ndarray | None = None  # pixels by class, in the order of per_class; see confusion_plot.py
    sheet: tuple[SheetRow, ...] = ()  # samples spread evenly over the data set
    worst: tuple[SheetRow, ...] = ()  # the worst first
    best: tuple[SheetRow, ...] = ()  # the best first


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results of one model."""

    model: str
    protocol: Mapping[str, Any]
    results: tuple[Result, ...]
    baseline: Report | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def headline(self) -> dict[str, dict[str, Any]]:
        """Each section of the first data set that has it."""
        sections: dict[str, dict[str, Any]] = {}
        for result in self.results:
            for name, numbers in result.sections.items():
                about = {"dataset": result.dataset, "num_samples": result.num_samples}
                sections.setdefault(name, {**about, **numbers})
        return sections

    def value(self, metric: str) -> float:
        """The value of "semantic.miou", "baseline.vqa.exact_match" or of a fact; NaN if unknown."""
        if metric.startswith("baseline."):
            return self.baseline.value(metric.removeprefix("baseline.")) if self.baseline else math.nan
        if metric in self.facts:
            return float(self.facts[metric])
        section, _, name = metric.partition(".")
        return float(self.headline().get(section, {}).get(name, math.nan))

    def with_baseline(self, baseline: Report) -> Report:
        """This report with that of the model before training as baseline."""
        return replace(self, baseline=replace(baseline, baseline=None))

    def with_facts(self, **facts: Any) -> Report:
        """This report with further facts, such as `minutes_train=5.2`, which become top-level keys."""
        taken = {"schema_version", "model", "protocol", "datasets", "baseline", "timings", *SHOWN} & set(
            facts
        )
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: a key of the schema; choose another name")
        return replace(self, facts={**self.facts, **facts})

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json; see the top of this file."""
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "protocol": dict(self.protocol),
            **self.headline(),
            "datasets": [
                {
                    "dataset": result.dataset,
                    "task": result.task,
                    "num_samples": result.num_samples,
                    "sections": {name: dict(numbers) for name, numbers in result.sections.items()},
                    "per_class": {name: dict(numbers) for name, numbers in result.per_class.items()},
                    "data": dict(result.data),
                    "notes": list(result.notes),
                }
                for result in self.results
            ],
        }
        if self.baseline is not None:
            content["baseline"] = self.baseline.to_dict()
        content["timings"] = {
            "seconds": {result.dataset: round(result.seconds, 1) for result in self.results}
        }
        return _nan_to_none({**content, **self.facts})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`. Raises ValueError for another schema version."""
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"schema_version is {version}, this program reads {SCHEMA_VERSION}; evaluate again"
            )
        seconds = content["timings"]["seconds"]
        results = tuple(
            Result(
                **_none_to_nan({**entry, "notes": tuple(entry.get("notes", ()))}),
                seconds=seconds.get(entry["dataset"], 0.0),
            )
            for entry in content["datasets"]
        )
        known = {"schema_version", "model", "protocol", "datasets", "baseline", "timings"}
        sections = {name for result in results for name in result.sections}
        return cls(
            model=content["model"],
            protocol=content["protocol"],
            results=results,
            baseline=cls.from_dict(content["baseline"]) if content.get("baseline") else None,
            facts={key: value for key, value in content.items() if key not in known | sections},
        )


def read_report(path: str | Path) -> Report:
    """Read a report.json, or the one in a folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is malformed, or of another schema version.
    """
    path = Path(path)
    path = path / REPORT_FILE if path.is_dir() else path
    if not is_regular(path):
        raise FileNotFoundError(f"{path} does not exist; test_sem.py --report_dir writes it")
    content = read_json(path)
    try:
        return Report.from_dict(content)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from problem
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise UserError(f"{path} is no report of test_sem.py ({problem!r}); evaluate again") from problem


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _none_to_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _none_to_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
