"""Evaluation: data sets in, a Report out. Used by test_sem.py and by the validation of train_ds.py.

With several processes each sample is predicted by exactly one of them, also when their number does not divide
that of the samples, and every process gets the whole report. Samples are put into batches before the batches are
distributed, so that the report does not depend on the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.errors import UserError
from model.processor import LasagnaProcessor
from utils.common.paths import file_stems
from utils.data.base import Dataset
from utils.data.val_datasets import open_datasets
from utils.evaluation.dataset_run import DatasetRun, Outputs
from utils.evaluation.gather import rank_and_world_size, wait_for_all
from utils.evaluation.model import SegmentationModel, evaluation_mode
from utils.evaluation.prompting import EvaluationSettings
from utils.evaluation.resume import RunIdentity, discard, fingerprint, has_samples
from utils.reports.report import REPORT_FILE, Report, read_report

logger = logging.getLogger(__name__)


def evaluate_entries(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    entries: Sequence[str],
    dataset_dir: str | Path,
    settings: EvaluationSettings,
    *,
    name: str = "",
    show_progress: bool = True,
) -> Report:
    """Evaluate a model on data sets as `--val_dataset_list` names them: ["ade20k", "refcoco|unc|val"].

    Raises ValueError or FileNotFoundError, before anything is predicted, when one is unknown or not there.
    """
    datasets = open_datasets(entries, dataset_dir)
    return evaluate_datasets(model, processor, datasets, settings, name=name, show_progress=show_progress)


def evaluate_datasets(
    model: SegmentationModel,
    processor: LasagnaProcessor,
    datasets: Mapping[str, Dataset],
    settings: EvaluationSettings,
    *,
    name: str = "",
    outputs: Outputs | None = None,
    show_progress: bool = True,
) -> Report:
    """Evaluate a model on opened data sets. A collective call when several processes run.

    Args:
        model: a LasagnaForConditionalGeneration on any device; it is evaluated in eval mode, and restored.
        processor: its LasagnaProcessor.
        name: what the report calls the model, for instance its folder.

    Raises:
        UserError: settings that this model cannot follow, or finished samples to continue from that belong to
            another model, protocol or version.
    """
    outputs, settings = outputs or Outputs(), settings.for_model(model)
    settings.constrains(
        processor.format
    )  # settings that this model cannot follow fail before the first image
    protocol = settings.protocol(constrained=processor.format.answers_every_class)
    check_calibration(datasets, settings)
    prepare(outputs)
    model_id = fingerprint(model) if outputs.report_dir else ""
    stems = file_stems(datasets)
    runs = []
    for entry, dataset in datasets.items():
        identity = RunIdentity(
            model=model_id,
            entry=entry,
            num_items=len(dataset),
            protocol=protocol,
            predictions=f"{outputs.predictions_dir or ''}{' with maps' if outputs.save_maps else ''}",
            num_shown=outputs.num_shown,
            num_sheet_rows=settings.num_sheet_rows,
        )
        runs.append(DatasetRun(entry, dataset, stems[entry], settings, outputs, identity))
    try:
        with evaluation_mode(model):
            results = tuple(run.result(model, processor, show_progress=show_progress) for run in runs)
    finally:
        for run in runs:
            run.close()
    return Report(model=name, protocol=protocol, results=results)


def check_calibration(datasets: Mapping[str, Dataset], settings: EvaluationSettings) -> None:
    """UserError if a threshold is to be calibrated on data in which no class is known to be absent."""
    silent = [entry for entry, dataset in datasets.items() if not dataset.knows_absent]
    if settings.calibrate and silent:
        raise UserError(
            f"calibrate needs classes that are known to be absent, and {', '.join(silent)} states none; add "
            "exhaustive=true if every object is labelled, or leave calibrate out"
        )


def prepare(outputs: Outputs) -> None:
    """Check what is to be continued, or remove it for a new start. A collective call."""
    if outputs.report_dir is None:
        return
    report_file = outputs.report_dir / REPORT_FILE
    if outputs.resume and report_file.is_file():
        read_report(report_file)  # a report of another schema is not continued
    if not outputs.resume and rank_and_world_size()[0] == 0:
        if has_samples(outputs.report_dir) and not report_file.is_file():
            logger.warning(
                "%s holds an unfinished evaluation; it starts anew, with --resume it would continue",
                outputs.report_dir,
            )
        discard(outputs.report_dir)
    wait_for_all()
