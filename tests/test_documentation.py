"""The documentation is true: files, modules and links exist, the code tour is complete, and every command runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.commands import BASE, README, REPOSITORY, SMALL_RUN, Command, blocks, fill_in, shell_commands
from utils.common.settings import declared
from utils.config.training import TrainConfig
from utils.reports.report import Report
from utils.reports.write import write_report

DOCS = REPOSITORY / "docs"
TOUR = DOCS / "architecture.md"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((REPOSITORY / "assets").glob("*/README.md")),
    REPOSITORY / "tests" / "golden" / "README.md",
]
TOP = tuple(path.name for path in REPOSITORY.iterdir() if not path.name.startswith((".", "runs", "dataset")))
# Folders whose files the tour does not list one by one.
NOT_LISTED = ("assets", "tests", "utils/data/class_lists")


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


# ------------------------------------------------------------------------- names and links


def named_paths(page: Path) -> set[str]:
    """Files and folders of this repository that a page names in `backticks`."""
    code = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))
    words = {word.rstrip("/:,") for text in code for word in text.split()}
    return {
        word
        for word in words
        if word.split("/")[0] in TOP and re.fullmatch(r"[\w./-]+", word) and not re.search(r"\bNAME", word)
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    missing = sorted(name for name in named_paths(page) if not (REPOSITORY / name).exists())
    assert not missing, f"{name_of(page)} names files that are not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_a_page_runs_or_imports_exist(page):
    text = page.read_text()
    modules = re.findall(r"python -m ((?:utils|model|benchmarks)[\w.]*)", text)
    modules += re.findall(r"^from ((?:utils|model)[\w.]*) import", text, re.M)
    for module in modules:
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_says_is_in_a_file_is_in_it(page):
    for name, file in re.findall(r"`([A-Za-z_]\w+)`\s+in\s+`([\w/]+\.py)`", page.read_text()):
        assert re.search(rf"\b{name}\b", (REPOSITORY / file).read_text()), f"{name} is not in {file}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target


# ------------------------------------------------------------------------- the code tour


def listed_files() -> Iterator[str]:
    """The files of the tour; two spaces of indentation are one level."""
    (tree,) = (block for block in blocks(TOUR, "text") if block.startswith("train_ds.py"))
    folders: list[str] = []
    for line in filter(str.strip, tree.splitlines()):
        indent = (len(line) - len(line.lstrip())) // 2
        name, *words = line.split()
        assert words, f"{name} has no description"
        del folders[indent:]
        if name.endswith("/"):
            folders.append(name)
        else:
            yield "".join(folders) + name


def files_in_the_tree() -> set[str]:
    """Every file that the tour has to describe. An __init__.py is its folder."""
    files = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("*.py")}
    for folder in ("model", "utils", "benchmarks", "configs", "docs"):
        paths = [path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        files |= {
            str(path)
            for path in paths
            if path.suffix in (".py", ".yaml", ".sbatch", ".md", ".jinja")
            and path.name != "__init__.py"
            and not str(path).startswith(NOT_LISTED)
        }
    return files


def test_the_code_tour_has_one_line_for_every_file():
    listed = list(listed_files())
    assert len(listed) == len(set(listed))
    missing, gone = sorted(files_in_the_tree() - set(listed)), sorted(set(listed) - files_in_the_tree())
    assert not missing, f"describe in docs/architecture.md, a line each: {missing}"
    assert not gone, f"docs/architecture.md lists what is not there: {gone}"


def test_every_training_setting_is_in_one_group_of_the_training_page():
    text = (DOCS / "training.md").read_text()
    table = text[text.index("| group |") : text.index("Wherever a value is a path")]
    listed = {
        row.split("|")[1].strip(): re.findall(r"`(\w+)`", row) for row in table.splitlines() if "`" in row
    }
    groups: dict[str, list[str]] = {}
    for one in declared(TrainConfig):
        groups.setdefault(one.group, []).append(one.name)
    assert listed == groups


# ------------------------------------------------------------------------- commands

# What this file does not run, and why.
ELSEWHERE = {
    "hf": "the hub's own program",
    "benchmarks.full_scale": "takes 40 GB; tests/benchmarks/test_full_scale.py runs it small",
    "utils.toy.ablation": "takes minutes a run; tests/utils/toy/test_ablation.py runs it small",
    "utils.toy.pretrain": "takes hours; tests/utils/toy/test_pretrain.py",
}
MORE = {
    "train_ds": [*BASE, *SMALL_RUN, "--no_eval", "--epochs=1", "--steps_per_epoch=1",
                 # A recipe for another base is tried with a LLaVA, whose images have a fixed number of tokens.
                 "--min_image_tokens=none", "--max_image_tokens=none",
                 # For a GPU; tests/utils/training/test_cuda_graphs.py and test_compile.py.
                 "--cuda_graphs=false", "--compile=false"],
    "test_sem": ["--max_samples=1", "--num_threads=1", "--precision=fp32"],
    "chat": ["--max_new_tokens=12"],
}  # fmt: skip
# README.md: tests/test_scripts.py. docs/own_data.md: tests/test_own_data.py. docs/quick_start.md:
# tests/test_quick_start.py.
RUN_HERE = [page for page in PAGES if page not in (README, DOCS / "own_data.md", DOCS / "quick_start.md")]
COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{number}")
    for page in RUN_HERE
    for number, line in enumerate(shell_commands(page))
]


@pytest.fixture(scope="module")
def desk(workspace, trained_run, merged_model, tmp_path_factory):
    """A working directory as the pages assume it: ./dataset, a finished run, a report, images and a class file."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("assets", "base", "configs", "dataset"):
        (folder / name).symlink_to((workspace / name).resolve())
    (folder / "runs").mkdir()
    (folder / "runs" / "LaSagnA-7b").symlink_to(trained_run.folder)
    write_report(Report(model="x", protocol={}, results=()), folder / "runs" / "report")
    (folder / "photos").mkdir()
    image = min((workspace / "dataset/ade20k/images/validation").iterdir())
    (folder / "photos" / "a.jpg").write_bytes(image.read_bytes())
    (folder / "classes.txt").write_text("sky\ntree\n")
    return folder


class Hub:
    """HfApi without a network."""

    def whoami(self):
        return {"name": "NAME"}

    def create_repo(self, name, *, private, exist_ok):
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert (Path(folder_path) / "config.json").is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_pages_works(line, desk, workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setattr("utils.common.hub.HfApi", Hub)
    monkeypatch.setattr("builtins.input", lambda _: ":quit")
    if "--web" in line:
        pytest.importorskip("gradio", reason="an optional package of the page")
    if "--serve" in line or "--web" in line:  # starts, and is not waited for
        monkeypatch.setattr(pytest.importorskip("uvicorn").Server, "run", lambda self, sockets: None)
    filled = fill_in(line, workspace).replace("PATH_TO_SAVED_MODEL", str(tmp_path / "saved"))
    command = Command.parse(filled.replace("/fast/", f"{tmp_path}/"))
    if command.script == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)[1].split()
        # BASE=smolvlm sets a variable
        assert {word for word in command.arguments if "=" not in word} <= set(targets)
    elif "--help" in command.arguments:
        with pytest.raises(SystemExit) as end:
            command.run()
        assert end.value.code == 0
    elif command.script not in ELSEWHERE:
        more = [*MORE.get(command.script, [])]
        if {"--serve", "--web"} & set(command.arguments):
            more.append("--port=0")
        if command.script == "train_ds":
            more = [flag for flag in more if not stated(flag, command)] + [f"--log_base_dir={tmp_path}"]
        elif stated("--images", command):  # what is only predicted is predicted whole
            more.remove("--max_samples=1")
        assert command.run(*more) == 0, capsys.readouterr().err


def stated(flag: str, command: Command) -> bool:
    """Whether the page's own command says what to draw from, or what to predict."""
    name = flag.split("=")[0]
    return name in ("--refer_seg_data", "--images") and any(
        word.split("=")[0] == name for word in command.arguments
    )


# ------------------------------------------------------------------------- continuous integration


def test_continuous_integration_runs_what_has_to_pass_on_every_python_that_is_promised():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (REPOSITORY / ".ci/run").stat().st_mode & 0o100
    least = re.search(r'requires-python = ">=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())[1]
    assert least in job["strategy"]["matrix"]["python-version"]
