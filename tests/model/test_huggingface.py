"""Python code that comes with a folder of weights never runs, whatever is typed."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
from functools import partial

import pytest
from transformers import AutoConfig, AutoTokenizer

from model.checkpoints.load import load_model
from model.errors import UserError
from model.huggingface import from_config, from_pretrained
from model.text.tokenizer_files import load_tokenizer
from tests.commands import REPOSITORY
from tests.tiny_bases import write_base_model

TOY = REPOSITORY / "assets" / "toy"
PARTS = {"vision_tower": str(TOY / "clip"), "sam": str(TOY / "sam2")}
WRAPPER = "model/huggingface.py"
# Classes of this repository, whose own `from_pretrained` goes through the wrapper.
OWN = {"LasagnaProcessor", "LasagnaForConditionalGeneration"}


@pytest.fixture
def ran(tmp_path):
    """The file that the code of an evil folder would write."""
    return tmp_path / "ran"


@pytest.fixture
def evil(tmp_path, ran):
    """The toy LLaVA with a type that transformers does not know, and evil.py for tokenizer and configuration."""
    folder = tmp_path / "llava"
    shutil.copytree(TOY / "llava", folder)
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nX = None\n")
    settings = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    path = folder / "config.json"
    auto_map = {"AutoConfig": "evil.X", "AutoModelForImageTextToText": "evil.X"}
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"model_type": "llava_llama", "auto_map": auto_map})
    )
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", [AutoConfig, AutoTokenizer])
def test_code_of_a_folder_is_refused_in_one_line_and_not_asked_about(kind, evil, ran, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match=r"llava needs Python code of its own \('auto_map' .*never run; pass"):
        from_pretrained(kind, evil)
    assert not ran.exists()
    assert sys.stdin.tell() == 0


@pytest.mark.parametrize("load", [load_tokenizer, partial(load_model, **PARTS)])
def test_code_of_a_tokenizer_does_not_run_when_stdin_says_yes(load, evil, ran, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="never run"):
        load(evil)
    assert not ran.exists()


def test_other_mistakes_of_a_configuration_are_one_line_with_their_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard of"}')
    with pytest.raises(UserError, match="unheard of") as raised:
        from_pretrained(AutoConfig, tmp_path)
    assert "auto_map" not in str(raised.value)


def test_sampling_settings_that_cannot_be_read_are_one_line(tmp_path):
    folder = write_base_model("qwen3_vl", tmp_path)
    (folder / "generation_config.json").write_text('{"watermarking_config": {"a": 1}}')
    with pytest.raises(
        UserError, match=r"generation_config.json cannot be read as sampling settings \(TypeError"
    ):
        load_model(folder, **PARTS)


def test_weights_that_do_not_fit_are_told_once_and_without_the_colours_of_a_terminal(
    tmp_path, capfd, monkeypatch
):
    folder = write_base_model("qwen3_vl", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["depth"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(UserError, match="unexpected"):
        load_model(folder, **PARTS)
    told = capfd.readouterr()
    assert "UNEXPECTED" not in told.out + told.err
    assert "\x1b[1m" not in told.out + told.err


@pytest.mark.parametrize("call", [from_pretrained, from_config])
def test_nobody_can_ask_for_the_code_of_a_folder(call):
    class Recorder:
        @staticmethod
        def load(argument, **options):
            return options

        from_pretrained = from_config = load

    assert call(Recorder, "folder", trust_remote_code=True, dtype="auto") == {
        "trust_remote_code": False,
        "dtype": "auto",
    }


def test_every_call_of_from_pretrained_goes_through_the_wrapper():
    files = [
        path for folder in ("model", "utils", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
    ]
    files += REPOSITORY.glob("*.py")
    around = []
    for path in files:
        name = path.relative_to(REPOSITORY).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in ("from_pretrained", "from_config"):
                owner = ast.unparse(node.func.value)
                if owner not in OWN and name != WRAPPER:
                    around.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and name != WRAPPER:
                around.append(f"{name}: {node.arg}")
    assert around == []
