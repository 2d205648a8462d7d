"""Training runs in forked processes: the stack is imported once, and a run starts in a second."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import TOY, TOY_PARTS
from benchmarks.crash.writes import Writes

STEPS_PER_EPOCH, EPOCHS, SAVE_EVERY = 2, 3, 3
SCORES = {
    2: 0.2,
    4: 0.5,
    6: 0.3,
}  # step -> what its validation is told to give: the best is neither first nor last
TIME_LIMIT = 240.0  # seconds for one run
FLAGS = (
    f"--version={TOY}/llava", *TOY_PARTS,
    "--dataset=sem_seg||refer_seg", "--sem_seg_data=ade20k", "--refer_seg_data=refcoco", "--num_all_classes=8",
    "--batch_size=1", "--grad_accumulation_steps=1", "--warmup_steps=2", "--lr=1e-3", "--workers=0",
    "--num_threads=1", f"--epochs={EPOCHS}", f"--steps_per_epoch={STEPS_PER_EPOCH}",
    f"--save_every_steps={SAVE_EVERY}", "--keep_last=2", "--exp_name=run",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of run."""

    processes: int
    precision: str

    @property
    def name(self) -> str:
        """As --only has it: 2xbf16"""
        return f"{self.processes}x{self.precision}"

    def flags(self, dataset: Path, folder: Path) -> list[str]:
        """The command line of the run in `folder`/run; the precisions have different optimizers."""
        stage = 0 if self.precision == "fp32" else 2
        return [*FLAGS, f"--dataset_dir={dataset}", f"--log_base_dir={folder}", f"--precision={self.precision}",
                f"--zero_stage={stage}"]  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """When, and whom.

    Attributes:
        rank: who dies by it.
        moment: the number of the write; None: by time.
        seconds: after the first step; without a `moment`.
        both: the other process is killed as well, as when a machine goes down; else it has to end by itself.
    """

    rank: int
    moment: int | None = None
    seconds: float = 0.0
    both: bool = False


@dataclass(frozen=True)
class Outcome:
    """How the processes of a run ended."""

    codes: tuple[int, ...]  # exit codes, -9 for a kill; None would be a process that hung
    seconds: float
    seconds_of_steps: float  # from the first step on
    seconds_alone: float  # from the death of the first process to that of the last
    log: str


def start(kind: Kind, dataset: Path, folder: Path, kill: Kill | None = None) -> Outcome:
    """Runs, or resumes, a training in `folder`; every process must end within TIME_LIMIT."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began, log = time.monotonic(), folder / f"log_{len(list(folder.glob('log_*')))}.txt"
    sys.stdout.flush()
    children = [_fork(kind, rank, dataset, folder, kill, port, log) for rank in range(kind.processes)]
    codes: dict[int, int] = {}
    ended: list[float] = []
    first_step: float | None = None
    losses = folder / "run" / "losses.jsonl"
    while len(codes) < len(children):
        for rank, child in enumerate(children):
            if rank not in codes and (status := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(status[1])
                ended.append(time.monotonic())
        now = time.monotonic()
        if first_step is None and losses.exists() and losses.stat().st_size:
            first_step = now
        alive = [rank for rank in range(len(children)) if rank not in codes]
        victims: list[int] = []
        if now - began > TIME_LIMIT or (kill and kill.both and kill.rank in codes):
            victims = alive
        elif (
            kill
            and kill.moment is None
            and first_step
            and now >= first_step + kill.seconds
            and kill.rank in alive
        ):
            victims = [kill.rank]
        for rank in victims:
            os.kill(children[rank], signal.SIGKILL)
        time.sleep(0.005)
    text = log.read_text(encoding="utf-8", errors="replace")
    return Outcome(
        codes=tuple(codes[rank] for rank in range(len(children))),
        seconds=time.monotonic() - began,
        seconds_of_steps=max(ended) - (first_step or max(ended)),
        seconds_alone=max(ended) - min(ended),
        log=text,
    )


def moments_of(folder: Path, rank: int) -> list[str]:
    """The moments of a run that was not killed, as its process counted them."""
    return json.loads((folder / f"moments_{rank}.json").read_text())


def kind_of(moment: str) -> str:
    """What a moment has in common with others: no numbers, and one file of the settings is as good as another."""
    return re.sub(
        r"step\d+|rank_\d+", "N", re.sub(r"(partial_settings_\w+|lasagna)(/\S+)?", "settings", moment)
    )


def of_many_kinds(moments: Sequence[str], number: int, rng: random.Random) -> list[int]:
    """The places of so many moments: first one of each kind, in random order, then another of each."""
    places = list(range(len(moments)))
    rng.shuffle(places)
    seen: Counter[str] = Counter()
    rounds = []
    for place in places:
        rounds.append(seen[kind_of(moments[place])])
        seen[kind_of(moments[place])] += 1
    in_order = sorted(range(len(places)), key=lambda index: rounds[index])
    return [places[in_order[index % len(in_order)]] for index in range(number)]


def _fork(kind: Kind, rank: int, dataset: Path, folder: Path, kill: Kill | None, port: int, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(written, standard)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(kind.processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        code = _train(kind.flags(dataset, folder), folder, rank, kill)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(flags: Sequence[str], folder: Path, rank: int, kill: Kill | None) -> int:
    import train_ds
    from utils.training import validation
    from utils.training.progress import Score

    train_ds.open_validation = lambda _: {"told": []}
    validation.validate = lambda engine, *_: engine.global_steps
    validation.log_validation = lambda *_: None
    validation.deciding_score = lambda step: Score(value=SCORES[step], measured="what it was told")
    writes = Writes(folder / "run", kill.moment if kill and kill.rank == rank else None)
    writes.install()
    code = train_ds.main(list(flags))
    if kill is None:
        (folder / f"moments_{rank}.json").write_text(json.dumps(writes.moments))
    return code
