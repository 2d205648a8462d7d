"""Check data before training: what exists, what is wrong, how fast it is.

    python -m utils.data.tools.check --dataset_dir ./dataset  # all that exist
    python -m utils.data.tools.check --dataset_dir ./dataset \\
      --dataset "sem_seg||refer_seg" --sem_seg_data ade20k
    python -m utils.data.tools.check --config configs/lasagna_7b.yaml --all

Samples are drawn as in training; --all reads every file. `--version` names the
model whose tokenizer counts tokens. Exit code 0: all data sets are usable; 1:
one that was asked for is not; 2: an error in the flags.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.common.command_line import answer_at_once, parse_config
from utils.config.tools import CheckConfig
from utils.config.training import TrainConfig

if __name__ == "__main__":
    # Slow imports follow.
    answer_at_once("utils.data.tools.check", CheckConfig, __doc__, passed_over=TrainConfig)

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table

from utils.common.commands import command
from utils.common.logs import quiet, start_logging
from utils.common.terminal import PrintableText as Text
from utils.data.index.cache import use_index_cache
from utils.data.mixture import recipe_of
from utils.data.registry import Entry
from utils.data.shards.cache import use_shard_cache
from utils.data.tools.selection import (
    entries_asked,
    entries_known,
    entries_to_evaluate,
    processor_for,
)
from utils.data.tools.survey import Finding, Surveyor

WIDTH, MAX_NAME = 80, 19  # columns
MAX_NAMED = 10  # files listed per data set; ten times as many with --all
NOT_MEASURED = "-"


@command("utils.data.tools.check")
def main(argv: Sequence[str] | None = None) -> int:
    # A file written for a run may hold all of its settings.
    config = parse_config(CheckConfig, argv, about=__doc__, passed_over=TrainConfig)
    use_index_cache(config.index_cache)
    use_shard_cache(config.shard_cache, config.shard_cache_gb)
    asked = [(entry, True) for entry in entries_asked(config)]
    if config.val_dataset_list:
        asked += [
            (entry, False) for entry in entries_to_evaluate(config.val_dataset_list, config.dataset_dir)
        ]
    if not asked or any(entry.needs_dataset_dir for entry, _ in asked):
        check_dataset_dir(config)
    surveyor = build_surveyor(config)
    findings = survey(surveyor, asked or entries_known())
    findings = findings if asked else missing_in_one_row(findings)
    print_findings(findings, config, Console())
    failed = [
        finding
        for finding in findings
        if not finding.is_usable(config.max_bad_fraction) and (asked or not finding.is_missing)
    ]
    return 1 if failed or all(finding.is_missing for finding in findings) else 0


def check_dataset_dir(config: CheckConfig) -> None:
    """FileNotFoundError without the folder of the public data sets."""
    if not Path(config.dataset_dir).is_dir():
        raise FileNotFoundError(f"--dataset_dir {config.dataset_dir} is not a folder")


def build_surveyor(config: CheckConfig) -> Surveyor:
    format = config.sequence_format
    return Surveyor(
        dataset_dir=config.dataset_dir,
        recipe=recipe_of(config, format),
        seed=config.seed,
        num_samples=config.num_samples,
        read_all=config.all,
        max_length=config.model_max_length,
        processor=processor_for(config.version, format, config.prompt_template) if config.version else None,
    )


def survey(surveyor: Surveyor, entries: Sequence[tuple[Entry, bool]]) -> list[Finding]:
    """Open all data sets first, so that an error in a flag shows at once; then survey each."""
    start_logging()
    with quiet("utils"):  # dropped and replaced items are in the table
        opened = [surveyor.open(entry, training=training) for entry, training in entries]
        for finding, dataset in opened:
            if dataset is not None:
                surveyor.look(finding, dataset)
    return [finding for finding, _ in opened]


def missing_in_one_row(findings: Sequence[Finding]) -> list[Finding]:
    """The data sets that exist, in order, and one row at the end for each that is missing."""
    found = {finding.name.split("|")[0] for finding in findings if not finding.is_missing}
    kept = [finding for finding in findings if finding.name.split("|")[0] in found]
    missing = {f.name.split("|")[0]: f for f in findings if f.name.split("|")[0] not in found}
    return [*kept, *missing.values()]


# ---------------------------------------------------------------------------------------------- the table


def print_findings(findings: Sequence[Finding], config: CheckConfig, console: Console) -> None:
    """One row per data set, and the faults below the table, in at most 80 columns."""
    width = min(console.width, WIDTH)
    console.print(Text(f"Data sets in {config.dataset_dir}", style="bold"), width=width)
    console.print(to_table(findings, config), width=width)
    remarks = [remark for finding in findings if (remark := remarks_on(finding, config))]
    if remarks:
        console.print(Group(*remarks), width=width)
    console.print(Text("\n".join(legend(config)), style="dim"), width=width)


def to_table(findings: Sequence[Finding], config: CheckConfig) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("data set", overflow="fold", min_width=MAX_NAME)
    table.add_column("state", no_wrap=True)
    for heading in ("images", "annot.", "classes", "labels", "tokens", "per s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for finding in findings:
        state, style = state_of(finding, config)
        cells = (
            number(finding.num_images),
            number(finding.num_annotations),
            number(finding.num_classes),
            NOT_MEASURED if finding.label_range is None else "{}-{}".format(*finding.label_range),
            tokens_of(finding, config),
            NOT_MEASURED if finding.samples_per_second is None else f"{finding.samples_per_second:.0f}",
        )
        # A long name breaks before its split.
        name = finding.name if len(finding.name) <= MAX_NAME else finding.name.replace("|", "\n|", 1)
        table.add_row(Text(name), Text(state, style=style), *cells)
    return table


def state_of(finding: Finding, config: CheckConfig) -> tuple[str, str]:
    """The state in one or two words, and its colour."""
    if finding.is_missing:
        return "missing", "yellow"
    if finding.problem:
        return "broken", "bold red"
    if finding.bad:
        return f"{finding.num_bad} bad", "yellow" if finding.is_usable(
            config.max_bad_fraction
        ) else "bold red"
    if finding.dropped:
        return f"{len(finding.dropped)} out", "yellow"
    return "ok", "green"


def number(value: int | None) -> str:
    return NOT_MEASURED if value is None else str(value)


def tokens_of(finding: Finding, config: CheckConfig) -> Text:
    """Median, 99th percentile and maximum; red where they exceed the limit."""
    if not finding.tokens:
        return Text(NOT_MEASURED)
    text = Text()
    for index, value in enumerate(np.percentile(finding.tokens, (50, 99, 100), method="higher").tolist()):
        text.append("/" if index else "")
        text.append(str(int(value)), style="red" if value > config.model_max_length else "")
    return text


def remarks_on(finding: Finding, config: CheckConfig) -> Group | None:
    """Details below the table: what was looked for, which files are bad, which samples are too long."""
    most = MAX_NAMED * 10 if config.all else MAX_NAMED
    lines: list[Text] = []
    if finding.problem:
        lines.append(Text(finding.problem))
    if finding.bad:
        counts = f"{finding.num_bad} of {finding.num_read} items read cannot be used"
        lines += [
            Text(f"{counts} ({finding.num_bad / max(finding.num_read, 1):.1%}):"),
            *named(finding.bad, most),
        ]
    if finding.dropped:
        lines += [Text(f"{len(finding.dropped)} items are left out:"), *named(finding.dropped, most)]
    lines += [
        Text(f"{len(places)} x {what}; first: {places[0]}", style="yellow")
        for what, places in finding.notes.items()
    ]
    lines += [Text(remark, style="yellow") for remark in finding.remarks]
    if finding.num_shortened or finding.num_too_long:
        lines.append(
            Text(
                f"of {len(finding.tokens)} samples, {finding.num_shortened} are shortened and {finding.num_too_long} "
                f"replaced, as they have more than --model_max_length {config.model_max_length} tokens"
            )
        )
    if not lines:
        return None
    heading = Text(finding.name, style="bold")
    return Group(heading, *(Padding(line, (0, 0, 0, 2)) for line in lines), Text())


def named(items: Sequence[str], most: int) -> list[Text]:
    lines = [Text(f"- {item}", style="red") for item in items[:most]]
    return lines + ([Text(f"and {len(items) - most} more")] if len(items) > most else [])


def legend(config: CheckConfig) -> list[str]:
    """How to read the columns."""
    read = "every file" if config.all else f"{config.num_samples} samples of each; --all reads every file"
    if config.version:
        tokens = f"tokens: median/99%/max of text, limit {config.model_max_length}"
    else:
        tokens = "tokens: not counted without --version, which names the tokenizer"
    return [
        f"Read: {read}.",
        f"labels: values in label files. {tokens}.",
        "per s: samples a second, one process.",
    ]


if __name__ == "__main__":
    sys.exit(main())
