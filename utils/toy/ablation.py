"""`make ablation`: what each strategy of the paper, and what goes beyond it, brings on the toy world.

    python -m utils.toy.ablation                          # every variant with three seeds, into runs/ablation
    python -m utils.toy.ablation --variants full spatial --seeds 0 1 --jobs 2

All runs take the same steps on the same data, one thread each; a seed changes the adapters' initial values and what
is drawn from the data. A second call continues: a run that has its report is not repeated, one that was stopped goes
on from its last save. --table prints the table of what there is. At the end, and after each run: ablation.json and
ablation.md.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from model.errors import UserError
from utils.common.commands import command, script_parser
from utils.common.files import write_whole
from utils.common.paths import path_flag
from utils.reports.report import Report, read_report
from utils.reports.tables import Table, markdown_table, print_table
from utils.toy import world
from utils.toy.child_scripts import ChildScripts
from utils.toy.demo import CONFIG, LAYOUTS

# One list of classes is 150 names, so a query names all of them only without a limit of its own.
WHOLE_LIST = ("--no_random_classes_list", "--num_all_classes", "200", "--model_max_length", "3072")
NO_NEG, ANY_ORDER = ("--no_sequence_augmentation",), ("--no_order_following",)
PAPER, SPATIAL = ("--spatial_prompt=false",), ("--spatial_prompt",)
# What the language model sees of an image that is no square; the recipe cuts out the middle.
PAD, STRETCH = ("--image_aspect_ratio", "pad"), ("--image_aspect_ratio", "stretch")


@dataclass(frozen=True)
class Variant:
    """A way to train: the toy recipe with further flags."""

    title: str
    flags: tuple[str, ...] = ()


VARIANTS = {
    "full": Variant("the recipe of the paper", PAPER),
    "whole_list": Variant("without random classes list", (*PAPER, *WHOLE_LIST)),
    "no_neg": Variant("without sequence augmentation", (*PAPER, *NO_NEG)),
    "any_order": Variant("without order following", (*PAPER, *ANY_ORDER)),
    "none": Variant("without all three", (*PAPER, *WHOLE_LIST, *NO_NEG, *ANY_ORDER)),
    "spatial": Variant("the recipe and a spatial prompt", SPATIAL),
    "latent": Variant(
        "the recipe, a spatial prompt and 4 latent prompts", (*SPATIAL, "--num_latent_prompts", "4")
    ),
    "pad": Variant("the recipe on padded images", (*PAPER, *PAD)),
    "stretch": Variant("the recipe on stretched images", (*PAPER, *STRETCH)),
    "spatial_pad": Variant("a spatial prompt on padded images", (*SPATIAL, *PAD)),
    "spatial_stretch": Variant("a spatial prompt on stretched images", (*SPATIAL, *STRETCH)),
}
VAL_DATASETS = "ade20k,refcoco|unc|val,grefcoco|unc|val,ReasonSeg|val"


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

VARIANTS_ABREAST = 4  # in 80 columns

console = Console()


@dataclass(frozen=True)
class Study:
    """Where the runs are, and what they have in common."""

    out: Path
    steps: int
    train_flags: tuple[str, ...] = ()
    max_samples: int | None = None

    @property
    def dataset(self) -> Path:
        return self.out / "dataset"

    def folder(self, variant: str, seed: int) -> Path:
        return self.out / variant / f"seed{seed}"

    def commands(self, variant: str, seed: int) -> list[list[str]]:
        """Training and evaluation of one run, as a person would type them."""
        run = self.folder(variant, seed)
        train = [
            "train_ds.py", "--config", str(CONFIG), "--dataset_dir", str(self.dataset), "--log_base_dir",
            str(run.parent), "--exp_name", run.name, "--sam_cache", str(self.out / "sam_cache"), "--epochs", "1",
            "--steps_per_epoch", str(self.steps), "--no_eval", "--num_threads", "1", "--seed", str(seed),
            *VARIANTS[variant].flags, *self.train_flags,
        ]  # fmt: skip
        limit = [] if self.max_samples is None else ["--max_samples", str(self.max_samples)]
        evaluate = [
            "test_sem.py", "--version", str(run / "ckpt_model"), "--dataset_dir", str(self.dataset),
            "--val_dataset_list", VAL_DATASETS, "--val_batch_size", "4", "--precision", "fp32", "--num_threads", "1",
            "--report_dir", str(run / "eval"), *limit,
        ]  # fmt: skip
        return [train, evaluate]

    def report(self, variant: str, seed: int) -> Report | None:
        """The report of a run that has been finished."""
        path = self.folder(variant, seed) / "eval" / "report.json"
        return read_report(path) if path.is_file() else None


@command("utils.toy.ablation")
def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("utils.toy.ablation", __doc__)
    parser.add_argument("--out", type=path_flag, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME",
                        help=f"by default all: {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each variant")
    parser.add_argument("--steps", type=int, default=700, help="training steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--num_images", type=int, default=400, help="training scenes of each layout")
    parser.add_argument("--num_val", type=int, default=100, help="validation scenes of each layout")
    parser.add_argument("--max_samples", type=int, default=None, help="evaluate on at most n samples of each")
    parser.add_argument("--train_flags", default="", help="more flags for train_ds.py, for every run")
    parser.add_argument("--table", action="store_true", help="only print the table of the finished runs")
    args = parser.parse_args(argv)
    for name in ("steps", "jobs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    study = Study(args.out, args.steps, tuple(shlex.split(args.train_flags)), args.max_samples)
    failed = []
    if not args.table:
        check_same_study(study, [args.num_images, args.num_val])
        make_world(study, args.num_images, args.num_val)
        # Seed by seed, so that a table of all variants is there early.
        runs = [(variant, seed) for seed in args.seeds for variant in args.variants]
        failed = run_all(study, runs, args.jobs)
    publish(study, args.variants, args.seeds)
    for variant, seed in failed:
        console.print(
            f"{variant}, seed {seed} stopped: {study.folder(variant, seed) / 'log.txt'}", style="red"
        )
    return 1 if failed else 0


def check_same_study(study: Study, scenes: Sequence[int]) -> None:
    """Numbers of one table are comparable: the settings of the first call hold for the folder."""
    path = study.out / "study.json"
    settings = {"steps": study.steps, "scenes": list(scenes), "max_samples": study.max_samples,
                "train_flags": list(study.train_flags)}  # fmt: skip
    if not path.is_file():
        write_whole(path, json.dumps(settings) + "\n")
    elif (before := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise UserError(f"{study.out} was begun with {before}, not {settings}; take another --out")


def make_world(study: Study, num_images: int, num_val: int) -> None:
    words = ["--out", str(study.dataset), "--num_images", str(num_images), "--num_val", str(num_val)]
    if code := world.main([*words, "--layouts", LAYOUTS]):
        raise SystemExit(code)


def run_all(study: Study, runs: Sequence[tuple[str, int]], jobs: int) -> list[tuple[str, int]]:
    """Runs what is not finished, `jobs` at a time; returns what failed. The table is written after each.

    Ctrl-C and SIGTERM end what runs, which saves, and start nothing else.
    """
    failed = []
    todo = [run for run in runs if study.report(*run) is None]
    console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished")
    scripts = ChildScripts()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_one, study, *run, scripts): run for run in todo}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                variant, seed = futures[future]
                if not future.result():
                    failed.append((variant, seed))
                console.print(f"{done} of {len(todo)}: {variant}, seed {seed}", highlight=False)
                write_results(study)
        except (KeyboardInterrupt, SystemExit):
            pool.shutdown(wait=False, cancel_futures=True)
            scripts.stop()
            raise
    return failed


def run_one(study: Study, variant: str, seed: int, scripts: ChildScripts) -> bool:
    """Trains and evaluates in processes of their own; whether both ended well."""
    folder = study.folder(variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        for words in study.commands(variant, seed):
            log.write(f"$ python {shlex.join(words)}\n")
            log.flush()
            if not scripts.run(words, log):
                return False
    return True


# -------------------------------------------------------------------------------------------- the table


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


def write_results(study: Study, variants: Sequence[str] = tuple(VARIANTS), seeds: Sequence[int] = ()) -> None:
    """ablation.json and ablation.md of all finished runs."""
    seeds = seeds or sorted({int(path.parent.parent.name.removeprefix("seed"))
                             for path in study.out.glob("*/seed*/eval/report.json")})  # fmt: skip
    found = {
        name: columns for name, columns in results(study, variants, seeds).items() if any(columns.values())
    }
    content = {"steps": study.steps, "variants": found}
    write_whole(study.out / "ablation.json", json.dumps(content, indent=1) + "\n")
    lines = "\n".join(f"- {line}" for line in legend(list(found)))
    write_whole(study.out / "ablation.md", f"{markdown_table(results_table(found))}\n\n{lines}\n")


def publish(study: Study, variants: Sequence[str], seeds: Sequence[int]) -> None:
    """The files, and the table on the terminal."""
    write_results(study)
    found = results(study, variants, seeds)
    for group in batched(found, VARIANTS_ABREAST):
        print_table(results_table({variant: found[variant] for variant in group}), console)
    for line in legend(variants):
        console.print(line, highlight=False)
    console.print(study.out / "ablation.md", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
