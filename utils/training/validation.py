"""Validation in training: which weights are the best, whatever moment the run is stopped at."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from utils.config.training import TrainConfig
from utils.data.base import Dataset
from utils.data.val_datasets import check_list, open_list
from utils.evaluation.evaluate import evaluate_datasets
from utils.evaluation.prompting import EvaluationSettings
from utils.reports.report import Report
from utils.training.checkpoint import save_best, save_validated
from utils.training.engine import Engine
from utils.training.log import TrainLog, deciding_score, log_failed_validation, log_validation, say
from utils.training.progress import Progress
from utils.training.sample_images import num_rows
from utils.training.whole_model import WholeModel


def open_validation(config: TrainConfig) -> dict[str, Dataset]:
    """The data sets to validate on, opened before the model: a misspelt name should not cost minutes."""
    if config.no_eval:
        if config.val_dataset_list.strip():
            check_list(config.val_dataset_list)
        return {}
    return open_list(config.val_dataset_list, config.dataset_dir)


def validate_epoch(
    engine: Engine,
    config: TrainConfig,
    datasets: dict[str, Dataset],
    progress: Progress,
    log: TrainLog,
    whole: WholeModel | None = None,
) -> None:
    """Validate the weights as they are, keep them if they are the best so far, and note that it is done.

    A validation that fails is logged, and tried again when the run is resumed at this step.

    Args:
        whole: where processes cannot run the model independently of each other, a copy to validate.
    """
    progress.owes_validation = False
    if not datasets:
        return
    step, validated = progress.step, progress.validated
    try:
        report = validate(engine, datasets, config, whole)
    except Exception as problem:  # whatever it is, days of training do not end for it
        log_failed_validation(step, problem)
        return
    score = deciding_score(report)
    if score is not None and validated.is_beaten_by(score):
        if validated.measures_otherwise(score):
            say(
                f"ckpt_best starts anew with step {step}: the best score so far measured "
                f"{validated.best_measured or 'what was not noted'}, now it is {score.measured}"
            )
        save_best(engine, config, step, score)
        validated = replace(validated, best_step=step, best_score=score.value, best_measured=score.measured)
    # Not before: a run that is killed while it saves the best validates this step again, and would log it twice.
    log_validation(step, report, log)
    progress.validated = replace(validated, step=step)
    save_validated(config, progress.validated)


def validate(
    engine: Engine, datasets: dict[str, Dataset], config: TrainConfig, whole: WholeModel | None = None
) -> Report:
    """The report of the model as it is now."""
    settings = EvaluationSettings(
        classes_per_query=config.classes_per_query,
        max_samples=config.max_val_samples,
        val_batch_size=config.val_batch_size,
        encoder_precision=config.encoder_precision,
        num_sheet_rows=num_rows(len(datasets)) if config.trackers else 0,
    )
    with whole.filled_from(engine.module) if whole else nullcontext(engine.module) as model:
        return evaluate_datasets(
            model, model.processor, datasets, settings, name=config.exp_name, show_progress=False
        )
