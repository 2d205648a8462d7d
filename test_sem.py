"""Evaluate a model: semantic, referring, reasoning segmentation and VQA.

    deepspeed --master_port=24999 test_sem.py --version=FOLDER \\
      --dataset_dir=./dataset --eval_only
    python test_sem.py --version FOLDER --val_batch_size 4 \\
      --val_dataset_list "ade20k,refcoco|unc|val,ReasonSeg|val" \\
      --report_dir runs/report --vis_save_path runs/report
    python test_sem.py --version FOLDER --val_dataset_list all \\
      --report_dir runs/report --resume
    python test_sem.py --version FOLDER --images 'photos/*.jpg' \\
      --classes classes.txt --save_predictions out

FOLDER is what merge_lora_weights_and_save_hf_model.py writes. The numbers are
printed, and written to --report_dir (docs/evaluation.md says what is in it);
a sheet of eight samples of each data set goes to --vis_save_path. Several
processes share the samples, and each sample is counted once. A killed
evaluation continues with --resume. With --images nothing is evaluated: images
without ground truth are predicted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from utils.common.command_line import answer_at_once, parse_config
from utils.config.inference import TOY_REMARK, TestConfig

if __name__ == "__main__":
    answer_at_once("test_sem.py", TestConfig, __doc__)  # slow imports follow

import torch

from model.checkpoints.load import load_model
from model.checkpoints.sums import verify_sums
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor
from utils.common.commands import command
from utils.common.distributed import device_of, distributed
from utils.common.files import write_png
from utils.common.folder_lock import EVALUATION_LOCK, folder_lock
from utils.common.logs import start_logging
from utils.common.paths import check_writable, file_stems, writable_folder
from utils.data.index.cache import use_index_cache
from utils.data.shards.cache import use_shard_cache
from utils.data.val_datasets import open_list
from utils.evaluation.dataset_run import NUM_SHOWN, Outputs
from utils.evaluation.evaluate import check_calibration, evaluate_datasets
from utils.evaluation.maps import check_has_maps, check_maps
from utils.evaluation.predict import classes_asked, find_images, predict_images
from utils.evaluation.prompting import EvaluationSettings
from utils.reports.report import Report
from utils.reports.sheet import draw_sheet
from utils.reports.tables import print_report
from utils.reports.write import write_report

# After the loss of a process.
CURE = "Start again; with --report_dir, --resume continues from the finished samples"


@command("test_sem.py")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(TestConfig, argv, about=__doc__)
    start_logging()
    with folders_held(config):
        if config.images:
            predict(config)
        else:
            evaluate_and_report(config)
    return 0


@contextmanager
def folders_held(config: TestConfig) -> Iterator[None]:
    """No other evaluation writes into the same folders meanwhile, and deletes or mixes what this one has finished."""
    flags = ("report_dir", "save_predictions") if os.environ.get("RANK", "0") == "0" else ()
    folders = {os.path.realpath(path): (path, flag) for flag in flags if (path := getattr(config, flag))}
    with ExitStack() as held:
        for path, flag in folders.values():
            check_writable(path, f"--{flag}")
            held.enter_context(folder_lock(Path(path), EVALUATION_LOCK, f"--{flag}"))
        yield


def evaluate_and_report(config: TestConfig) -> None:
    """Evaluate the model on data sets, print and write the report."""
    settings = settings_of(config)
    use_index_cache(config.index_cache)
    use_shard_cache(config.shard_cache, config.shard_cache_gb)
    # Before the model is loaded, which takes minutes: a misspelt name should fail at once.
    datasets = open_list(config.val_dataset_list, config.dataset_dir)
    check_calibration(datasets, settings)
    outputs = outputs_of(config)
    with distributed(config.rank_timeout, command="test_sem.py", cure=CURE) as rank:
        model, processor = load(config)
        report = evaluate_datasets(
            model, processor, datasets, settings, name=config.model_folder, outputs=outputs
        )
        if rank == 0:
            publish(report, config)


def predict(config: TestConfig) -> None:
    """Predict images without ground truth."""
    settings = settings_of(config)
    images = find_images(config.images)
    classes, values = classes_asked(config.classes)
    folder = writable_folder(config.save_predictions, "--save_predictions")
    with distributed(config.rank_timeout, command="test_sem.py", cure="Start again"):
        model, processor = load(config)
        path = predict_images(
            model,
            processor,
            images,
            classes,
            folder,
            settings,
            class_values=values,
            name=config.model_folder,
            maps=config.save_maps,
        )
        if path:
            print(f"predictions: {path}")


def load(config: TestConfig) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """The model on this process's device, and its processor."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if config.verify:
        verify_sums(config.model_folder, "--version")
    if not config.version:
        print(TOY_REMARK, file=sys.stderr)
    if config.save_maps:
        check_maps(config.model_folder)
    model, processor = load_model(config.model_folder, device=device_of(), **config.loading)
    if config.save_maps:
        check_has_maps(model, config.model_folder)
    return model, processor


def settings_of(config: TestConfig) -> EvaluationSettings:
    """What of the command line changes how the model is prompted and judged."""
    return EvaluationSettings(
        classes_per_query=config.classes_per_query,
        oracle_classes=config.oracle_classes,
        presence_threshold=config.presence_threshold,
        rethreshold=config.rethreshold,
        calibrate=config.calibrate,
        free_generation=config.free_generation,
        match_distance=config.match_distance,
        teacher_forced=config.teacher_forced,
        max_new_tokens=config.max_new_tokens,
        max_samples=config.max_samples,
        seed=config.seed,
        val_batch_size=config.val_batch_size,
        encoder_precision=config.encoder_precision,
        workers=config.workers,
    )


def outputs_of(config: TestConfig) -> Outputs:
    """The folders to write to, created and checked; UserError for one that cannot be written to."""
    if config.resume and not config.report_dir:
        raise UserError("--resume needs --report_dir: the folder of the evaluation that was killed")
    if config.save_maps and not config.save_predictions:
        raise UserError("--save_maps needs --save_predictions: the folder that the maps go to")
    if config.save_maps and config.teacher_forced:
        raise UserError("--save_maps shows what a model answers itself; leave --teacher_forced out")
    if config.vis_save_path:
        writable_folder(config.vis_save_path, "--vis_save_path")
    return Outputs(
        report_dir=writable_folder(config.report_dir, "--report_dir") if config.report_dir else None,
        resume=config.resume,
        predictions_dir=(
            writable_folder(config.save_predictions, "--save_predictions")
            if config.save_predictions
            else None
        ),
        save_maps=config.save_maps,
        num_shown=NUM_SHOWN if config.report_dir else 0,
    )


def publish(report: Report, config: TestConfig) -> None:
    """Print the table; write the report and the sheets."""
    print_report(report)
    sheets = save_sheets(report, Path(config.vis_save_path)) if config.vis_save_path else []
    if config.report_dir:
        folder = Path(config.report_dir)
        images = [os.path.relpath(sheet, folder) for sheet in sheets]
        print(f"report: {write_report(report, folder, images=images)}")


def save_sheets(report: Report, folder: Path) -> list[Path]:
    """image | ground truth | prediction | legend, one file for each data set that has masks."""
    stems = file_stems(result.dataset for result in report.results)
    paths = []
    for result in report.results:
        if result.sheet:
            path = folder / f"sheet_{stems[result.dataset]}.png"
            write_png(path, draw_sheet(result.sheet, title=result.dataset))
            paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main())
