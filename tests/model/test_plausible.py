"""A config.json that no model can have is refused before anything is built from it."""

import json
import time
from contextlib import suppress

import pytest

from benchmarks.attack.configs import LLAVA_SIZES, SIZES
from model.checkpoints.load import load_model
from model.errors import UserError
from tests.tiny_weights import edit_json


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The config.json of a sound model, and its folder."""
    from benchmarks import TOY

    folder = tmp_path_factory.mktemp("sound")
    load_model(TOY / "llava", vision_tower=str(TOY / "clip"), sam=str(TOY / "sam2"))[0].save_pretrained(
        folder
    )
    return folder, (folder / "config.json").read_text()


@pytest.mark.parametrize("name", SIZES)
def test_wrong_types_and_sizes_are_one_line_in_a_second(sound, name):
    folder, text = sound
    content = json.loads(text)
    for change in SIZES[name]:
        change(content)
    (folder / "config.json").write_text(json.dumps(content))
    started = time.monotonic()
    with suppress(UserError):
        load_model(folder)
    assert time.monotonic() - started < 20
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize("name", ["100,000 layers", "1e9 layers", "hidden_size null", "sam_config a text"])
def test_a_message_names_the_file_and_the_entry(sound, name):
    folder, text = sound
    content = json.loads(text)
    for change in SIZES[name]:
        change(content)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json.*(num_hidden_layers|dtype|hidden_size|sam_config)"):
        load_model(folder)
    (folder / "config.json").write_text(text)


def test_original_llava_is_checked_too(tmp_path):
    import shutil

    from benchmarks import TOY

    for number, changes in enumerate(LLAVA_SIZES.values()):
        folder = shutil.copytree(TOY / "llava", tmp_path / str(number))
        content = json.loads((folder / "config.json").read_text())
        for change in changes:
            change(content)
        edit_json(folder / "config.json", **content)
        with pytest.raises((UserError, FileNotFoundError)):
            load_model(folder, vision_tower=str(TOY / "clip"), sam=str(TOY / "sam2"))
