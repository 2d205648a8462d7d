"""Texts that are programs: YAML with tags and aliases, chat templates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.attack.configs import put
from benchmarks.attack.desk import Attack, Desk, chat, check, edit_json, merge, train

YAML, TEMPLATES = "YAML", "chat templates"


def _config_file(text: str, desk: Desk) -> int:
    Path("evil.yaml").write_text(text.replace("SHELL", desk.shell))
    return train("--config=evil.yaml")


def _check_config(text: str, desk: Desk) -> int:
    Path("evil.yaml").write_text(text.replace("SHELL", desk.shell))
    return check("", "--config=evil.yaml")


def _run_yaml(text: str, desk: Desk) -> int:
    """run.yaml beside weights of a run, to be merged."""
    tag = desk.here / "ckpt_model" / "global_step7"
    tag.mkdir(parents=True)
    (tag.parent / "latest").write_text("global_step7")
    (tag / "mp_rank_00_model_states.pt").write_bytes(b"")
    (tag.parent / "lasagna").mkdir()
    (tag.parent / "lasagna" / "run.yaml").write_text(text.replace("SHELL", desk.shell))
    (tag.parent / "lasagna" / "config.json").write_text("{}")
    return merge("ckpt_model")


LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
TAGS = {
    "!!python/object/apply": "lr: !!python/object/apply:os.system ['SHELL']\n",
    "!!python/object/new": "lr: !!python/object/new:os.system ['SHELL']\n",
    "!!python/object": "lr: !!python/object:subprocess.Popen {args: 'SHELL'}\n",
    "!!python/name": "lr: !!python/name:os.system\n",
    "!!python/module": "lr: !!python/module:evil\n",
    "!!python/object/apply by %TAG": "%TAG !p! "
    "tag:yaml.org,2002:python/object/apply:\n---\nlr: !p!os.system ['SHELL']\n",
    "nested aliases": LAUGHS + "lr: *a9\n",
    "nested aliases as version": LAUGHS + "version: *a9\n",
    "an alias of itself": "lr: &a [*a]\n",
    "nested lists": "lr: " + "[" * 20000 + "]" * 20000 + "\n",
    "merge keys": "a: &a {lr: 1}\n" + "b: {" + "<<: *a, " * 5 + "}\n",
    "a number of 10 million digits": "lr: " + "9" * 10_000_000 + "\n",
    "control characters": 'lr: "\\e[31m\\a\\e]0;title"\n',
}  # fmt: skip


def yaml_attacks() -> Iterator[Attack]:
    """Tags that construct objects, and aliases that multiply, in both kinds of YAML that are read."""
    for name, text in TAGS.items():
        quick = name == "!!python/object/apply"
        yield Attack(YAML, f"--config, {name}", partial(_config_file, text), quick)
        yield Attack(YAML, f"run.yaml, {name}", partial(_run_yaml, text), quick)
    yield Attack(
        YAML, "--config of the check, nested aliases", partial(_check_config, TAGS["nested aliases"])
    )


TEMPLATE_TEXTS = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a text of 10 GB": "{{ 'x' * 10000000000 }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a text that doubles": "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "a width of 10^10": "{{ '%10000000000d' | format(1) }}",
    "code through a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "code through cycler": "{{ cycler.__init__.__globals__.os.system('SHELL') }}",
    "code through lipsum": "{{ lipsum.__globals__['os'].popen('SHELL').read() }}",
    "code through raise_exception": "{{ raise_exception.__globals__['sys'].modules['os'].system('SHELL') }}",
    "code through strftime_now": "{{ strftime_now.__globals__['os'].system('SHELL') }}",
    "a file": "{% include '../outside/secret.txt' %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "an exception with a terminal's commands": "{{ raise_exception('\x1b[31m') }}",
}


def _template(text: str, asked: bool, desk: Desk) -> int:
    """A chat template in the tokenizer, and a processor that asks for it."""
    folder = desk.copy_model()
    text = text.replace("SHELL", desk.shell)
    (folder / "chat_template.jinja").write_text(text)
    edit_json(folder / "tokenizer_config.json", put("chat_template", value=text))
    if asked:
        edit_json(folder / "processor_config.json", put("prompt", value="chat_template"))
        edit_json(folder / "config.json", put("prompt", value="chat_template"))
    return chat(folder)


def template_attacks() -> Iterator[Attack]:
    """Templates with code, loops and sizes without end."""
    for name, text in TEMPLATE_TEXTS.items():
        yield Attack(
            TEMPLATES, name, partial(_template, text, True), name in ("endless loops", "code through cycler")
        )
    yield Attack(
        TEMPLATES, "endless loops, not asked for", partial(_template, TEMPLATE_TEXTS["endless loops"], False)
    )


def attacks() -> Iterator[Attack]:
    yield from yaml_attacks()
    yield from template_attacks()
