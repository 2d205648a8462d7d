"""Shared fixtures: a small LLaMA tokenizer, a toy world to run the scripts on, and the reference numbers."""

from __future__ import annotations

import gc
import itertools
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from tests.commands import README, REPOSITORY, SMALL_RUN, Command, fill_in, run, shell_commands
from tests.golden import COMPLETE, PART, folders
from tests.tiny_weights import TinyFolders, write_base
from utils.common.processes import LAUNCH_VARIABLES
from utils.toy.world import WorldConfig, make_world

NAMES = (
    *("person", "tree", "dog", "cat", "sky", "grass", "house", "river", "mountain", "crt screen", "sofa"),
    *("chest of drawers", "pool table", "traffic light", "fire hydrant", "teddy bear", "tennis racket"),
    *("wall", "floor", "ceiling", "road", "sidewalk"),
)
SENTENCES = (
    "Can you segment the {a}, {b} in this image?",
    "Where is the {a} next to the {b}? It is on the left side.",
    "USER: Please show me the {a}. ASSISTANT: Sure, it is behind the {b}.",
    "A chat between a curious human and an artificial intelligence assistant about the {a} and the {b}.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions on {a}, {b}.",
)


def pytest_collection_finish() -> None:
    """The libraries' million objects stay; looking through them for garbage took a fifth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[None]:
    """What a test printed travels as UTF-8 from its process: lone surrogates, of damaged names, are spelled out."""
    return spelled_out((yield))


def spelled_out(value: Any) -> Any:
    """Nested lists, tuples and dictionaries with every text writable as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {spelled_out(name): spelled_out(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(spelled_out(entry) for entry in value)
    return value


@pytest.fixture(scope="session", autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """Under nohup this process ignores SIGHUP, as those that it starts would; tests are not to depend on that."""
    before = signal.getsignal(signal.SIGHUP)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def llama_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder in the form of original LLaMA v1 models: tokenizer.model and two JSON files."""
    folder = tmp_path_factory.mktemp("llama_tokenizer")
    pairs = itertools.permutations(NAMES, 2)
    lines = [SENTENCES[i % len(SENTENCES)].format(a=a, b=b) for i, (a, b) in enumerate(pairs)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    write_json(
        folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    write_json(folder / "tokenizer_config.json", settings | {"bos_token": "<s>", "eos_token": "</s>"})
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The complete reference numbers of the released code; tests that need them are skipped without."""
    if not COMPLETE.is_dir():
        pytest.skip(f"no reference numbers at {COMPLETE}; set LASAGNA_GOLDEN")
    return COMPLETE


@pytest.fixture(scope="session", params=folders(), ids=lambda path: "part" if path == PART else "complete")
def golden_part(request: pytest.FixtureRequest) -> Path:
    """Reference numbers without weights: tests/golden, and the complete set as well if it is there."""
    return request.param


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --dataset_dir with eight training and four validation scenes of each layout."""
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    make_world(WorldConfig(out=str(folder), num_images=8))
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_folder: Path) -> TinyFolders:
    """Tiny checkpoints on disk: a LLaVA, its CLIP, a SAM; copy them before changing anything."""
    return write_base(tmp_path_factory.mktemp("tiny"), llama_tokenizer_folder)


@pytest.fixture(scope="session")
def workspace(
    toy_world: Path, tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A working directory that looks like the repository to a user, with the toy world as ./dataset.

    The tiny checkpoints are in ./base.

    All output of the tests' runs stays in it. The process group that training creates is destroyed at the end.
    """
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("assets", "configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "dataset").symlink_to(toy_world)
    (folder / "base").symlink_to(tiny_folders.llava.parent)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCH_VARIABLES:
            patch.setenv(name, "")  # so that monkeypatch undoes what a script sets
            patch.delenv(name)
        yield folder
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class TrainedRun:
    """The result of the README's training command."""

    folder: Path
    argv: tuple[str, ...]  # how it was started
    module: torch.nn.Module  # the model in memory after the last step


@pytest.fixture(autouse=True)
def _own_linear_layers() -> Iterator[None]:
    """Restores torch's linear function, which DeepSpeed's ZeRO-3 replaces for good."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear


@pytest.fixture
def at_work(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as current folder; a test's runs go to a folder of its own."""
    monkeypatch.chdir(workspace)
    return workspace


@pytest.fixture(scope="session")
def trained_run(workspace: Path) -> TrainedRun:
    """The README's first training command on the toy world: four steps, two validations, defaults otherwise."""
    from utils.training import loop  # here: most tests do not need DeepSpeed

    line = next(line for line in shell_commands(README) if "train_ds.py" in line)
    command = Command.parse(fill_in(line, workspace))
    seen: dict[str, torch.nn.Module] = {}
    save = loop.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(
            loop,
            "save_checkpoint",
            lambda engine, *args: (seen.update(module=engine.module), save(engine, *args)),
        )
        assert command.run(*SMALL_RUN) == 0
    folder = workspace / "runs" / "LaSagnA-7b"
    return TrainedRun(folder=folder, argv=(*command.arguments, *SMALL_RUN), module=seen["module"])


@pytest.fixture(scope="session")
def merged_model(workspace: Path, trained_run: TrainedRun) -> Path:
    """The README's merge of that run's checkpoint folder, in float32."""
    target = workspace / "merged"
    assert run("merge_lora_weights_and_save_hf_model", "--weight", trained_run.folder / "ckpt_model",
               "--save_path", target, "--precision", "fp32") == 0  # fmt: skip
    return target


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
