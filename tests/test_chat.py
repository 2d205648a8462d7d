"""chat.py: what a line of a conversation means, and outputs that cannot be written."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

import chat
from model.errors import UserError
from tests.test_evaluation_scripts import KnowingModel, complaint, street  # noqa: F401
from utils.serving import session
from utils.serving.answers import Answer
from utils.serving.lines import HELP, understand
from utils.serving.wrapping import wrapped


@pytest.fixture
def knowing(monkeypatch):
    model = KnowingModel()
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: (model, model.processor))
    return model


@pytest.fixture
def no_model(monkeypatch):
    """A model that may not be loaded: the mistake has to be found before."""
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.fixture
def home(street, tmp_path, monkeypatch):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(street, home / "my photo.png")
    shutil.copy(street, home / "p.png")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


def say(lines, monkeypatch, capsys, *flags: str) -> str:
    """What a conversation of these lines prints."""
    given = iter([*lines, ":quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(given))
    assert chat.main(["--version=any", *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "written",
    ["'{}/my photo.png'", '"{}/my photo.png"', "{}/my\\ photo.png", "~/my photo.png", "file://{}/my%20photo.png",
     "{}/my photo.png", ":image '{}/my photo.png'", ":IMAGE ~/my\\ photo.png", ":Image\t~/my photo.png"],
)  # fmt: skip
@pytest.mark.parametrize("before", [(), ("~/p.png",)], ids=["first", "another"])
def test_an_image_is_opened_however_its_path_is_written(before, written, knowing, home, monkeypatch, capsys):
    out = say([*before, written.format(home), ":classes sky"], monkeypatch, capsys)
    assert "my photo_1_mask_1_sky.png" in out


def test_questions_are_no_paths(knowing, home, monkeypatch, capsys):
    (home.parent / "dog").mkdir()
    out = say(["~/p.png", "Where is the sky?", "dog", "and/or the dog?"], monkeypatch, capsys)
    assert out.count("[SEG]") == 1
    assert out.count("[NEG]") == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["~"], "is a folder, which holds my photo.png, p.png"),
        (["~/p.png", "~"], "~ is a folder"),
        (["~/p.png", "/no/such.png"], "/no/such.png does not exist"),
        (
            ["~/p.png", ":Class sky"],
            "known: :image, :classes, :threshold, :save, :reset, :help, :quit",
        ),
        ([":help"], HELP),
        ([":HELP"], HELP),
        ([":classes sky"], ":classes asks about an image, and there is none yet"),
        (["~/p.png", ":classes"], ":classes needs class names"),
        (["~/p.png", ":image"], ":image needs a path"),
        (["~/p.png", ":classes , "], "has no class name"),
        (["~nobody_here/p.png"], "no user 'nobody_here'"),
        (["Where is the sky?"], "'Where is the sky?' is no file; give the path of an image first"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_conversation_goes_on(
    lines, said, knowing, home, monkeypatch, capsys
):
    out = say([*lines, "~/p.png", "Where is the sky?"], monkeypatch, capsys)
    assert said in out.removeprefix(HELP)
    assert "--image" not in out
    assert "p_1_mask_1.png" in out or "p_2_mask_1.png" in out


@pytest.mark.parametrize("conversation", [True, False])
@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300])
def test_a_folder_that_cannot_be_written_is_found_before_the_model(
    place, conversation, no_model, home, capsys
):
    (home.parent / "file").write_text("")
    flags = [] if conversation else ["--image=~/p.png", "--classes=sky"]
    assert chat.main(["--version=any", f"--vis_save_path={place}", *flags]) == 2
    line = complaint(capsys)
    assert line.startswith("chat.py: --vis_save_path ")
    assert "cannot be written to" in line
    assert not any("vis" in path.name for path in home.parent.iterdir())


def test_a_folder_that_is_lost_later_does_not_end_a_conversation(knowing, home, monkeypatch, capsys):
    def spoiled(line):
        out = home.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        if line.endswith("?"):
            out.write_text("")

    lines = iter(["~/p.png", "Where is the sky?", ":classes sky", ":quit"])

    def type_in(prompt):
        line = next(lines)
        spoiled(line)
        return line

    monkeypatch.setattr("builtins.input", type_in)
    assert chat.main(["--version=any", "--vis_save_path=out"]) == 0
    out = capsys.readouterr().out
    assert "--vis_save_path out cannot be written to (File exists)" in out
    assert "p_2_mask_1_sky.png" in out


def test_names_of_classes_and_images_are_cut_to_what_a_file_name_holds(home, street, monkeypatch, capsys):  # noqa: F811
    model = KnowingModel()
    name = "é" * 250
    found = model.segment(SimpleNamespace(shape=(20, 30, 3)), ["sky"])
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: (model, model.processor))
    answer = Answer(text="", names=(name, name), masks=found.masks.repeat(2, 1, 1))
    monkeypatch.setattr(session, "ask_classes", lambda *_, **__: answer)
    long = home / f"{'ü' * 120}.png"
    shutil.copy(street, long)
    assert chat.main(["--version=any", f"--image={long}", f"--classes={name}", "--vis_save_path=out"]) == 0
    names = [path.name for path in (home.parent / "out").iterdir()]
    assert len(names) == 3
    assert sum("_mask_1_é" in name or "_mask_2_é" in name for name in names) == 2


def test_a_command_is_understood_in_any_case():
    assert understand(":Classes sky, Dog", has_image=True) == ("classes", "sky, Dog")
    assert understand("what is this?", has_image=True) == ("prompt", "what is this?")
    assert understand("a.png", has_image=False) == ("image", "a.png")
    assert understand("", has_image=False) == ("prompt", "")
    with pytest.raises(UserError, match="unknown command"):
        understand(":)", has_image=True)


def test_on_a_terminal_an_answer_is_wrapped_between_words_and_the_help_fits(monkeypatch):
    text = "traffic light [NEG], " * 12 + "sky [SEG]."
    assert wrapped(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    lines = wrapped(text).splitlines()
    assert " ".join(lines) == text
    assert max(map(len, [*lines, *HELP.splitlines()])) <= 80
