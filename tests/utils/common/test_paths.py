"""The one resolver: what a user types, in the ways terminals, shells and files write it."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.errors import UserError
from utils.common.command_line import parse_config
from utils.common.paths import check_writable, matches, resolve, same_place, shortened, writable_folder
from utils.common.settings import path_settings, setting
from utils.config.chat import ChatConfig
from utils.config.inference import MergeConfig, TestConfig
from utils.config.tools import CheckConfig, PreviewConfig, ShardConfig
from utils.config.training import TrainConfig
from utils.data.datasets.own import find_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with two photos, which is not the working directory."""
    home = tmp_path / "home of me"
    (home / "trip [2026]").mkdir(parents=True)
    for name in ("my photo.jpg", "p.jpg", "trip [2026]/photo[1].jpg", "trip [2026]/photo(2).jpg"):
        (home / name).write_bytes(b"")
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    return home


@pytest.mark.parametrize(
    "written",
    [
        "{}/my photo.jpg",
        "'{}/my photo.jpg'",
        '"{}/my photo.jpg"',
        " {}/my photo.jpg \n",
        "~/my photo.jpg",
        "'~/my photo.jpg'",
        "~/my\\ photo.jpg",
        "$HOME/my photo.jpg",
        "~\\my photo.jpg",
    ],
)
def test_every_way_to_write_a_path_finds_the_file(written, home):
    assert resolve(written.format(home)) == str(home / "my photo.jpg")


def test_what_a_terminal_writes_for_a_dropped_file(home):
    escaped = str(home / "trip [2026]" / "photo(2).jpg")
    for character in " []()":
        escaped = escaped.replace(character, f"\\{character}")
    for written in (
        escaped,
        (home / "trip [2026]" / "photo(2).jpg").as_uri(),
        f"file://localhost{home}/p.jpg",
    ):
        assert resolve(written).startswith(str(home)), written
        assert os.path.exists(resolve(written))


def test_an_existing_path_is_taken_as_it_is(home):
    for name in ("'quoted'", "a\\ b", "file:x", "$HOME", "~name", " blank "):
        Path(name).write_text("")
        assert resolve(name) == name


def test_the_home_wins_over_a_folder_named_tilde(home):
    Path("~").mkdir()
    Path("~/p.jpg").write_text("")
    assert resolve("~/p.jpg") == str(home / "p.jpg")
    assert resolve("~") == str(home)


@pytest.mark.parametrize(("written", "read"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_found(written, read, tmp_path):
    name = "Kühe/Café.jpg"
    path = tmp_path / unicodedata.normalize(written, name)
    path.parent.mkdir()
    path.write_bytes(b"")
    assert resolve(str(tmp_path / unicodedata.normalize(read, name))) == str(path)
    assert matches(str(tmp_path / unicodedata.normalize(read, "Kühe/C*é.jpg"))) == [str(path)]
    new = resolve(str(tmp_path / unicodedata.normalize(read, "Kühe") / "new" / "out"))
    assert new == str(path.parent / "new" / "out")


def test_what_is_to_be_made_gets_its_home_and_loses_its_quotes(home):
    assert resolve("~/answers") == str(home / "answers")
    assert resolve("'my answers'") == "my answers"
    assert resolve("my\\ answers") == "my answers"
    assert resolve("out/new") == "out/new"
    assert resolve("liuhaotian/llava") == "liuhaotian/llava"
    assert resolve("C:\\new") == "C:\\new"
    assert resolve("") == ""


@pytest.mark.parametrize(
    ("text", "part"), [("~nobody_here/x", "no user 'nobody_here'"), ("a\0b", "zero byte")]
)
def test_what_no_path_can_be_is_refused_with_its_flag(text, part, home):
    with pytest.raises(UserError, match=part) as error:
        resolve(text, "--out")
    assert "--out" in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("trip [2026]/*.jpg", ["photo(2).jpg", "photo[1].jpg"]),
        ("trip */photo[1].jpg", ["photo[1].jpg"]),
        ("trip [2026]/photo[[(][12]*", ["photo(2).jpg", "photo[1].jpg"]),
        ("trip*/photo?2?.jpg", ["photo(2).jpg"]),
        ("**/photo*", ["photo(2).jpg", "photo[1].jpg"]),
        ("nothing/*.jpg", []),
    ],
)
def test_a_pattern_below_a_folder_with_brackets(pattern, names, home):
    assert [Path(name).name for name in matches(str(home / pattern))] == names


def test_own_data_is_found_by_every_way_to_write_its_path(home):
    (home / "my boats").mkdir()
    for path, root in (
        ("~/my boats", "."),
        ("~/my\\ boats", "."),
        ("my boats", str(home)),
        ("'my boats'", str(home)),
    ):
        assert find_path(path, root, "own_sem:X") == home / "my boats"


NO_PATHS = {  # settings of text that name no path
    "val_dataset_list", "prompt", "tag", "format", "layout", "conv_type", "precision", "dataset", "exp_name",
    "attn_implementation", "lora_target_modules", "push_to_hub", "sem_seg_data", "refer_seg_data", "vqa_data",
    "reason_seg_data", "sample_rates", "sem_seg_rates", "refer_seg_rates", "vqa_rates", "reason_seg_rates",
    "neg_refer_seg_data", "neg_refer_seg_rates", "image_aspect_ratio", "trained_embeddings",
    "inline_images", "report_to", "host", "api_key", "model_name", "label_studio_url", "label_studio_token",
    "mask_head", "encoder_precision",
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [TrainConfig, TestConfig, ChatConfig, MergeConfig, CheckConfig, PreviewConfig, ShardConfig]
)
def test_every_setting_of_text_is_known_to_be_a_path_or_not(kind):
    texts = {name for name, field in kind.__dataclass_fields__.items() if isinstance(field.default, str)}
    if kind is ChatConfig:
        texts.remove("classes")  # names, where test_sem.py takes a file
    assert texts - NO_PATHS == path_settings(kind)


def test_a_flag_and_a_yaml_key_are_resolved_alike(home):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        out: str = setting("./out", "folder", path=True)
        title: str = setting("", "text")

    Path("c.yaml").write_text("out: ~/x\ntitle: ~/x\n")
    for flags in (["--out=~/x", "--title=~/x"], ["--out", "~/x", "--title", "~/x"], ["--config=c.yaml"]):
        config = parse_config(Config, flags)
        assert (config.out, config.title) == (str(home / "x"), "~/x")
    (home / "c.yaml").write_text("out: y\n")
    assert parse_config(Config, ["--config=~/c.yaml"]).out == "y"


def test_folders_for_outputs_are_tried(tmp_path):
    (tmp_path / "file").write_text("")
    bad = [tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("a" * 256), Path("/proc/nothing/here")]
    for folder in bad:
        for tried in (writable_folder, check_writable):
            with pytest.raises(UserError, match=r"--out .*cannot be written to"):
                tried(folder, "--out")
    assert check_writable(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    assert writable_folder(tmp_path / "a" / "b", "--out").is_dir()
    assert check_writable(tmp_path / "a", "--out").is_dir()


def test_long_names_are_cut_between_characters():
    assert shortened("person", 80) == "person"
    assert shortened("é" * 100, 81) == "é" * 40


def test_a_link_and_a_relative_path_are_the_same_place(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to("base")
    monkeypatch.chdir(tmp_path)
    assert same_place("base", str(tmp_path / "link"))
    assert same_place("", "")
    assert not same_place("base", "other")
    assert not same_place("", ".")
