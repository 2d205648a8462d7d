"""README.md of a merged model (a model card): base model, data, recipe, results, licences."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from model.config import LasagnaConfig
from utils.reports.markdown import code, escaped
from utils.reports.report import Report
from utils.reports.tables import results_table, shown_metrics

UNESCAPED_BAR, BAR = re.compile(r"(?<!\\)\|"), r"\\|"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
TASK = "image-segmentation"  # as the hub calls it
TAGS = ["segment-anything", "referring-segmentation", "semantic-segmentation"]
# The settings of a run that describe the model. Folders and machines are private.
DATA = (
    "dataset", "sample_rates", "sem_seg_data", "sem_seg_rates", "refer_seg_data", "refer_seg_rates",
    "neg_refer_seg_data", "neg_refer_seg_rates", "vqa_data", "vqa_rates", "reason_seg_data", "reason_seg_rates",
    "explanatory",
)  # fmt: skip
RECIPE = (
    "epochs", "steps_per_epoch", "batch_size", "grad_accumulation_steps", "lr", "warmup_steps", "beta1", "beta2",
    "weight_decay", "grad_clip", "ce_loss_weight", "bce_loss_weight", "dice_loss_weight", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "num_all_classes", "likely_negatives", "num_expressions", "num_questions",
    "random_classes_list", "sequence_augmentation", "order_following", "model_max_length", "precision", "seed",
)  # fmt: skip
UNKNOWN = "The settings of the training run did not come with its weights."


def model_card(
    name: str,
    base: str,
    config: LasagnaConfig,
    num_parameters: int,
    *,
    run: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> str:
    """The page: Markdown under the metadata that the hub reads.

    Args:
        name: of the model.
        base: the model that training started from; only the last part of a path is shown.
        run: settings of train_ds.py (run.yaml); None or empty where they are not known.
        report: what test_sem.py measured.
    """
    text, format = config.vlm_config.text_config, config.sequence_format
    family = config.vlm_config.model_type
    assert format is not None, "a merged model knows its sequence format"
    facts = {
        "Base model": escaped(last_part(base)),
        "Language model": f"hidden size {text.hidden_size}, {text.num_hidden_layers} layers",
        "Mask decoder": f"{config.sam_settings.title}, {config.sam_settings.image_size} px",
        "Prompt": f"`{config.prompt}`",
        "Sequence format": f"`{format['name']}`",
        "Parameters": f"{num_parameters:,}, {str(config.dtype).removeprefix('torch.')}",
    }
    run = run or {}
    if report:
        results = (replace(result, dataset=without_folders(result.dataset)) for result in report.results)
        report = replace(report, results=tuple(results))
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        license="other",
        tags=["lasagna", family.replace("_", "-"), *TAGS],
        model_name=name,
        eval_results=eval_results(report) if report else None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        name=name,
        family=family,
        facts=table(("", ""), facts.items()),
        data=settings_table(run, DATA),
        recipe=settings_table(run, RECIPE),
        results=results_of(report),
    )
    return card.content.rstrip() + "\n"


def eval_results(report: Report) -> list[EvalResult] | None:
    """The numbers of the tables as the hub shows them beside a model; None without any."""
    results = [
        EvalResult(
            task_type=TASK,
            task_name=section,
            dataset_type=re.split(r"[|:]", result.dataset)[0],
            dataset_name=result.dataset,
            metric_type=name,
            metric_name=f"{section}.{name}",
            metric_value=float(numbers[name]),
        )
        for result in report.results
        for section, numbers in result.sections.items()
        for name in shown_metrics(section, numbers)
        if math.isfinite(numbers[name])
    ]
    return results or None


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Data set entries hold "|", which would end a cell, and is escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        f"| {' | '.join(UNESCAPED_BAR.sub(BAR, str(cell)) for cell in line)} |" for line in lines
    )


def settings_table(run: Mapping[str, Any], names: Sequence[str]) -> str:
    """A Markdown table of those of `names` that the run has set."""
    rows = [
        (name, code(str(without_folders(run[name])))) for name in names if run.get(name) not in (None, "")
    ]
    return table(("setting", "value"), rows) if rows else UNKNOWN


def without_folders(value: Any) -> Any:
    """`own_coco:/data/mine.json|images=/data/img||refer_seg` -> `own_coco:mine.json|images=img||refer_seg`."""
    if not isinstance(value, str):
        return value
    return re.sub(r"([:=])([^|]*)", lambda match: match[1] + last_part(match[2]), value)


def last_part(path: str) -> str:
    """`/data/llava` -> `llava`."""
    return Path(path).name or path


def results_of(report: Report | None) -> str:
    """The results as a Markdown table, or a sentence if there are none."""
    if report is None:
        return "No evaluation came with the weights; `test_sem.py --report_dir` makes one."
    shown = results_table(report)
    protocol = ", ".join(f"{escaped(name)}: {escaped(str(value))}" for name, value in report.protocol.items())
    rows = [[escaped(cell) for cell in row] for row in shown.rows]
    return f"{table(shown.headings, rows)}\n\nProtocol: {protocol}."
