"""--help reads like a page: groups, 80 columns, each setting once with what it means."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

import pytest

from tests.commands import main_of, run
from utils.common.command_line import parse_config
from utils.common.help import HelpEntry, PageFormatter, help_page
from utils.common.settings import declared, setting

TRAINING = [
    "general", "model", "format", "data", "mixture", "loading", "recipe", "machine", "validation", "output",
]  # fmt: skip
GROUPS = {
    "train_ds": [
        "general",
        "model",
        "format",
        "data",
        "mixture",
        "loading",
        "recipe",
        "machine",
        "validation",
        "output",
    ],
    "test_sem": ["general", "model", "data", "prompting", "images without ground truth", "machine", "output"],
    "chat": ["general", "model", "question", "prompting", "answers in words", "output", "server"],
    "merge_lora_weights_and_save_hf_model": ["general", "checkpoint", "model", "output"],
    "utils.data.tools.check": ["general", "model", "format", "data", "mixture", "output"],
    "utils.data.tools.preview": ["general", "model", "format", "data", "mixture", "output"],
    "utils.costs.memory": [*TRAINING, "costs"],
    "utils.costs.flops": [*TRAINING, "costs"],
}


def page_of(script: str, capsys: pytest.CaptureFixture[str]) -> str:
    main_of(script)  # what libraries say when they are imported is not part of it
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(script, "--help")
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", GROUPS)
def test_the_page_of_a_script(script, capsys):
    page = page_of(script, capsys)
    assert max(map(len, page.splitlines())) <= 80
    assert re.findall(r"^(\w[\w ]*):$", page, re.MULTILINE) == GROUPS[script]
    flags = re.findall(r"^  (--\w+)", page, re.MULTILINE)
    assert len(flags) == len(set(flags))
    for flag in flags:  # `--pack, --no_pack` is one entry, and hyphens are not shown
        assert f"\n  --no_{flag[2:]}" not in page
    assert not re.search(r"--\w+-\w", page)
    assert "(default: )" not in page
    assert "None" not in page
    first = page.splitlines()[0]
    assert first.endswith(".")


SMALL_COMMANDS = [
    *("utils.toy.world", "utils.toy.demo", "utils.toy.ablation", "utils.toy.assistant", "utils.toy.pretrain"),
    *("utils.toy.pretrain.smolvlm", "utils.data.tools.openimages_index"),
    *(
        "benchmarks.loader",
        "benchmarks.metrics",
        "benchmarks.shards",
        "benchmarks.train_step",
        "benchmarks.load",
    ),
]


@pytest.mark.parametrize("name", SMALL_COMMANDS)
def test_the_page_of_a_small_command(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    page = page_of(name, capsys)
    assert page.startswith(f"usage: python -m {name} ")
    assert max(map(len, page.splitlines())) <= 80
    assert "None" not in page
    _, flags = page.split("\noptions:\n")
    for flag in re.split(r"\n  (?=-)", flags.rstrip("\n")):
        assert re.search(r"^-\S+.*?\s{2,}\S", flag.strip(), re.DOTALL), f"no word about {flag}"


def test_a_page_of_a_small_command_has_defaults_and_comments_above_long_commands():
    about = "\n".join([
        "It counts.", "", f"    python -m count    # {'all ' * 20}", "    python -m count --to 3", "",
        "A paragraph that is written in", "two lines.", "",
    ])  # fmt: skip
    parser = argparse.ArgumentParser(prog="count", description=about, formatter_class=PageFormatter)
    parser.add_argument("--to", type=int, default=0, help="100 % sure".replace("%", "%%"))
    parser.add_argument("--names", nargs="+", default=["a", "b"], help="names")
    parser.add_argument("--out", help="file")
    page = parser.format_help()
    assert (
        f"    # {'all ' * 17}all\n    # all all\n    python -m count\n    python -m count --to 3\n\n" in page
    )
    assert "A paragraph that is written in two lines.\n" in page
    assert re.search(r"--to INT +100 % sure \(default: 0\)\n", page)
    assert re.search(r"names \(default: a b\)\n", page)
    assert page.endswith("file\n")


def test_an_entry_says_what_a_setting_means_once():
    @dataclass(frozen=True, kw_only=True)
    class Config:
        rate: float = setting(3e-4, "rate", group="numbers")
        limit: int | None = setting(None, "limit", group="numbers", unset="all")
        zero: int = setting(0, "zero", group="numbers")
        mode: str = setting("a", "mode", ("a", "b"), group="texts", alias="way")
        on: bool = setting(True, "on", group="switches")
        off: bool = setting(False, "off", group="switches")
        profile: int = setting(0, "steps", group="numbers", alone=3)
        out: str = setting("", "folder", group="texts", path=True)

    entries = {one.name: (one.help_entry().flag, one.help_entry().text) for one in declared(Config)}
    assert entries == {
        "rate": ("--rate FLOAT", "rate (default: 0.0003)"),
        "limit": ("--limit INT", "limit (default: all)"),
        "zero": ("--zero INT", "zero (default: 0)"),
        "mode": ("--mode TEXT", "mode; one of a, b; also --way (default: a)"),
        "on": ("--on, --no_on", "on (default: on)"),
        "off": ("--off", "off"),
        "profile": ("--profile [INT]", "steps (default: 0)"),
        "out": ("--out PATH", "folder"),
    }
    config = parse_config(Config, ["--limit=3", "--way=b", "--no_on", "--profile"])
    assert (config.limit, config.mode, config.on, config.profile) == (3, "b", False, 3)


def test_groups_come_together_and_long_values_stay_whole():
    long = "x" * 60
    entries = [
        HelpEntry(flag="--a", text="first", group="one"),
        HelpEntry(flag="--b" * 12, text="second", group="two"),
        HelpEntry(flag="--c", text=f"third {long}", group="one"),
    ]
    assert help_page("About.\n\n    command", entries) == "\n".join(
        ["About.", "", "    command", "", "one:", f"  {'--a':26}first", f"  {'--c':26}third", " " * 28 + long, "",
         "two:", f"  {'--b' * 12}", " " * 28 + "second", ""]
    )  # fmt: skip
