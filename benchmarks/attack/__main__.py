"""Attacks the commands with files that run code, read or write elsewhere, exhaust or crash whoever opens them.

    python -m benchmarks.attack              # all, more than two thousand
    python -m benchmarks.attack --quick      # one of each kind
    python -m benchmarks.attack --only pickles,names --verbose

Each attack prepares its files and runs a command (chat.py, test_sem.py, train_ds.py, the merge, the check, the
preview, shard) in a process of its own, with limits of time and memory and a stdin that says "y". Exit
code 1 when code was executed, anything leaked, or a command crashed or hung. Kinds and what is not promised:
docs/security.md.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from benchmarks import TOY, TOY_PARTS, script_parser
from benchmarks.attack import (
    bases,
    configs,
    data,
    images,
    names,
    newer_data,
    outside,
    pickles,
    requests,
    run_files,
    shards,
    special_files,
    texts,
    work,
)
from benchmarks.attack.desk import Attack, Desk
from benchmarks.attack.runner import BAD, TIME_LIMIT, VERDICTS, Outcome, clear, in_child, run

ATTACKS: tuple[Attack, ...] = (
    *pickles.attacks(), *configs.attacks(), *texts.attacks(), *names.attacks(), *outside.attacks(),
    *special_files.attacks(), *data.attacks(), *work.attacks(), *bases.attacks(), *newer_data.attacks(),
    *requests.attacks(), *images.attacks(), *shards.attacks(), *run_files.attacks(),
)  # fmt: skip

COMMANDS = ("chat", "merge_lora_weights_and_save_hf_model", "test_sem", "train_ds", "utils.data.tools.check",
            "utils.data.tools.preview", "utils.data.tools.shard")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("benchmarks.attack", __doc__)
    parser.add_argument("--quick", action="store_true", help="one attack of each kind")
    parser.add_argument("--only", default="", help="kinds, or parts of attacks' names, separated by commas")
    parser.add_argument("--verbose", action="store_true", help="a line for each attack")
    parser.add_argument("--time_limit", type=float, default=TIME_LIMIT, help="seconds for each attack")
    options = parser.parse_args(argv)
    wanted = [word.strip() for word in options.only.split(",") if word.strip()]
    chosen = [attack for attack in ATTACKS if is_wanted(attack, wanted, quick=options.quick)]
    if not chosen:
        parser.error(f"no attack is called {options.only!r}")
    for module in COMMANDS:  # once, for all children
        importlib.import_module(module)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attack_") as folder:
        outcomes = run_all(chosen, Path(folder), options.time_limit, verbose=options.verbose)
    print(table(outcomes))
    print(f"{len(outcomes)} attacks in {time.monotonic() - started:.0f} s")
    bad = [outcome for outcome in outcomes if outcome.verdict in BAD]
    for outcome in bad:
        print(f"{outcome.verdict}: {outcome.attack.kind}, {outcome.attack.name}: {outcome.detail[:400]}")
    return 1 if bad else 0


def is_wanted(attack: Attack, wanted: Sequence[str], *, quick: bool) -> bool:
    """Whether an attack is among those asked for."""
    if quick and not attack.quick:
        return False
    return not wanted or any(word in f"{attack.kind}, {attack.name}" for word in wanted)


def run_all(attacks: Sequence[Attack], folder: Path, time_limit: float, *, verbose: bool) -> list[Outcome]:
    """Every attack in a folder of its own."""
    model = folder / "sound_model"
    log = folder / "sound_model.txt"
    if in_child(lambda: write_models(model), folder, log) != 0:
        raise RuntimeError(f"the sound model could not be written: {log.read_text()}")
    outcomes = []
    for number, attack in enumerate(attacks):
        desk = Desk(folder / f"attack_{number}", model)
        outcomes.append(run(attack, desk, time_limit))
        clear(desk)
        if verbose:
            latest = outcomes[-1]
            line = f"{latest.verdict:9}{latest.seconds:6.1f} s  {attack.kind}, {attack.name}: {latest.detail[:300]}"
            print(ascii(line)[1:-1], flush=True)
    return outcomes


def write_models(folder: Path) -> int:
    """A sound model: the toy world's base weights, put together; beside it those of `bases`."""
    import torch

    from model.checkpoints.load import load_model

    torch.set_num_threads(1)
    tower, sam = (flag.split("=")[1] for flag in TOY_PARTS)
    load_model(TOY / "llava", vision_tower=tower, sam=sam)[0].save_pretrained(folder)
    bases.write(folder.parent)
    run_files.write(folder.parent)
    return 0


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind, a column for each verdict."""
    kinds = list(dict.fromkeys(outcome.attack.kind for outcome in outcomes))
    count = Counter((outcome.attack.kind, outcome.verdict) for outcome in outcomes)
    total = Counter(outcome.verdict for outcome in outcomes)
    rows = [(kind, *(str(count[kind, verdict]) for verdict in VERDICTS)) for kind in kinds]
    rows.append(("all", *(str(total[verdict]) for verdict in VERDICTS)))
    lines = [("kind", *VERDICTS), ("---", *["---:"] * len(VERDICTS)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
