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
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from model.errors import UserError
from utils.common.commands import command, script_parser
from utils.common.files import write_whole
from utils.common.paths import path_flag
from utils.reports.tables import markdown_table, print_table
from utils.toy import world
from utils.toy.ablation_table import batched, legend, results, results_table
from utils.toy.child_scripts import ChildScripts
from utils.toy.demo import LAYOUTS
from utils.toy.study import VARIANTS, Study

VARIANTS_ABREAST = 4  # in 80 columns

console = Console()


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
