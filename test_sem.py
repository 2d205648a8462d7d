"""Evaluate a model: semantic, referring, reasoning segmentation and answers in words.

    deepspeed --master_port=24999 test_sem.py --version=FOLDER --dataset_dir=./dataset --eval_only
    python test_sem.py --version FOLDER --dataset_dir ./dataset --val_batch_size 4 \\
        --val_dataset_list "ade20k,refcoco|unc|val,grefcoco|unc|val,ReasonSeg|val,llava_instruct_150k" \\
        --report_dir runs/report --vis_save_path runs/report

FOLDER is what merge_lora_weights_and_save_hf_model.py writes. The numbers are printed, and written to
--report_dir as report.json and report.md (utils/report.py says what is in them); a sheet of eight samples of
each data set goes to --vis_save_path. Several processes share the samples, and each sample is counted once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.lasagna import LasagnaForConditionalGeneration
from model.loading import load_model
from model.processor import LasagnaProcessor
from utils.asking import EvaluationSettings
from utils.config import TestConfig
from utils.data.registry import parse_val_list
from utils.distributed import device_of, distributed, dtype_of
from utils.evaluate import evaluate_datasets, open_datasets
from utils.logs import one_line, start_logging
from utils.report import Report
from utils.settings import parse_config
from utils.tables import print_report
from utils.visualize import draw_sheet


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse_config(TestConfig, argv)
        start_logging()
        # Before the model: minutes of loading should not end in a misspelt name.
        datasets = open_datasets(
            [str(entry) for entry in parse_val_list(config.val_dataset_list)], config.dataset_dir
        )
        with distributed() as rank:
            model, processor = load(config)
            report = evaluate_datasets(model, processor, datasets, settings_of(config), name=config.version)
            if rank == 0:
                publish(report, config)
    except (ValueError, FileNotFoundError) as problem:
        print(f"test_sem.py: {one_line(problem)}", file=sys.stderr)
        return 2
    return 0


def load(config: TestConfig) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """The model on this process's device, and its processor."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    model, processor = load_model(config.version, dtype=dtype_of(config.precision))
    return model.to(device_of()), processor


def settings_of(config: TestConfig) -> EvaluationSettings:
    """What of the command line belongs to the evaluation."""
    return EvaluationSettings(
        classes_per_query=config.classes_per_query,
        presence_threshold=config.presence_threshold,
        teacher_forced=config.teacher_forced,
        max_samples=config.max_samples,
        val_batch_size=config.val_batch_size,
    )


def publish(report: Report, config: TestConfig) -> None:
    """Print the table; write report.json, report.md and the sheets."""
    print_report(report)
    sheets = save_sheets(report, Path(config.vis_save_path)) if config.vis_save_path else []
    if config.report_dir:
        folder = Path(config.report_dir)
        pictures = [os.path.relpath(sheet, folder) for sheet in sheets]
        print(f"report: {report.save(folder, pictures=pictures)}")


def save_sheets(report: Report, folder: Path) -> list[Path]:
    """image | ground truth | prediction | legend, a file for each data set that has pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in report.results:
        if result.sheet:
            path = folder / f"sheet_{re.sub(r'[^A-Za-z0-9]+', '_', result.dataset)}.png"
            draw_sheet(result.sheet, title=result.dataset).save(path)
            paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main())
