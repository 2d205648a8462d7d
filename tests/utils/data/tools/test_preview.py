"""The preview shows what the model gets: tokens, what is learned of them, masks and what they are called."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.text.conversation import Conversation
from model.text.encoded import IGNORE_INDEX
from model.text.special_tokens import Special
from tests.commands import complaint
from tests.utils.data.layouts import blocks, dialogue, write_ade20k, write_llava
from utils.common.command_line import parse_config
from utils.common.label_values import UNCLAIMED
from utils.common.processes import start_of
from utils.config.tools import PreviewConfig
from utils.data.collate import LengthLimit
from utils.data.tools import preview
from utils.data.types import Sample


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_ade20k(tmp_path, [blocks([k, k + 1]) for k in range(1, 7)])
    write_llava(tmp_path, [dialogue("1.jpg", "What <b>is</b> [SEG]?", "A ball & a <script>.")])
    return tmp_path


def sections_of(page: str) -> list[str]:
    return page.split("<section>")[1:]


def tokens_of(section: str) -> list[tuple[int, bool]]:
    """(id, learned) of the tokens on a page."""
    spans = re.findall(r'<span class="(t[a-z ]*)" title="(\d+)">', section)
    return [(int(index), "learned" in kinds) for kinds, index in spans]


def test_the_page_shows_the_samples_of_the_run_token_by_token(root, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--dataset_dir={root}", "--dataset=sem_seg||vqa", "--sem_seg_data=ade20k", "--seed=3"]
    assert preview.main([*flags, "--num_samples=6", f"--out={out}"]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page), "needs no other file"

    config = parse_config(PreviewConfig, flags)
    processor = preview.processor_for(config.version, config.sequence_format, config.prompt_template)
    mixture = preview.build_mixture(config, processor)
    sections = sections_of(page)
    assert len(sections) == 6
    for index, section in enumerate(sections):
        sample = mixture[index]
        encoded = processor.encode(sample.conversations[0])
        assert tokens_of(section) == [
            (index, label != IGNORE_INDEX)
            for index, label in zip(encoded.input_ids, encoded.labels, strict=True)
        ]
        assert html.escape(sample.source) in section
        assert section.count("<figure>") == len(sample.masks)


def test_text_of_the_data_is_escaped(root, tmp_path):
    assert (
        preview.main([f"--dataset_dir={root}", "--dataset=vqa", "--num_samples=1", f"--out={tmp_path}"]) == 0
    )
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page


def test_without_flags_all_that_is_found_is_drawn_from(root, tmp_path):
    assert preview.main([f"--dataset_dir={root}", "--num_samples=1", f"--out={tmp_path}"]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"(\w+)\|train: 50.0% of the draws", page) == ["ade20k", "llava_instruct_150k"]


def test_masks_of_one_answer_are_told_apart_by_the_words_before_them():
    seg = Special("[SEG]")
    answer = ("Well: the red cup ", seg, ", a dish", seg, " and ", seg, ". It holds soup, the cup ", seg, ".")
    masks = np.ones((5, 4, 6), dtype=np.uint8)
    conversation = Conversation.of("Which?", answer, "And a mug?", ("It is ", seg, "."))
    sample = Sample(
        image=np.zeros((4, 6, 3), dtype=np.uint8), conversations=(conversation,), masks=masks, source="a.jpg"
    )
    expected = ("the red cup", "a dish", "Which?", "the cup", "And a mug?")
    assert preview.show(0, sample).phrases == expected


def test_every_mask_has_its_phrase_and_small_masks_lie_in_front():
    question = "Where are dog and tail?"
    conversation = Conversation.of(
        question, (Special("[SEG]"), " and ", Special("[SEG]")), "Thanks.", "Welcome."
    )
    masks = np.zeros((2, 4, 6), dtype=np.uint8)
    masks[0, 1, 1] = 1
    masks[1, :3, :3] = 1
    sample = Sample(
        image=np.zeros((4, 6, 3), dtype=np.uint8), conversations=(conversation,), masks=masks, source="a.jpg"
    )
    shown = preview.show(0, sample)
    assert shown.phrases == (question, question)
    assert shown.colours[0] != shown.colours[1]
    labels = preview.frontmost(masks)
    assert labels[1, 1] == 0
    assert labels[0, 0] == 1
    assert (labels == UNCLAIMED).sum() == 24 - 9
    assert np.asarray(shown.draw(6, masks=True)).shape == (4, 6, 3)


def test_the_thumbnail_of_a_mask_is_the_mask(root, tmp_path):
    flags = [f"--dataset_dir={root}", "--sem_seg_data=ade20k", "--num_samples=1", f"--out={tmp_path}"]
    assert preview.main(flags) == 0
    section = sections_of((tmp_path / "index.html").read_text(encoding="utf-8"))[0]
    config = parse_config(PreviewConfig, flags)
    processor = preview.processor_for(config.version, config.sequence_format, config.prompt_template)
    sample = preview.build_mixture(config, processor)[0]
    encoded = re.search(r'<figure><img alt="" src="data:image/png;base64,([^"]+)"', section)[1]
    thumbnail = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))) > 127
    factor = thumbnail.shape[1] / sample.masks.shape[2]
    assert thumbnail.mean() == pytest.approx(sample.masks[0].mean(), abs=0.05)
    column = int(np.flatnonzero(sample.masks[0].any(axis=0)).mean() * factor)
    assert thumbnail[:, column].all()


def test_what_was_left_out_is_said(root, tmp_path):
    flags = [f"--dataset_dir={root}", "--sem_seg_data=ade20k", "--num_samples=8", "--model_max_length=110"]
    assert preview.main([*flags, f"--out={tmp_path}"]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.search(r"left out to fit --model_max_length: \d+ absent classes, 0 conversations", page)
    assert max(map(int, re.findall(r"(\d+) text tokens", page))) <= 110


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sem_seg_data=cityscapes"], "cityscapes needs"),
        (["--sem_seg_data=cityscape"], "unknown data set 'cityscape'"),
        (["--version=./nowhere"], "--version ./nowhere is not there"),
        (["--dataset_dir=./nowhere"], "holds no data set to train on"),
    ],
)
def test_mistakes_end_with_2_and_one_line(root, tmp_path, capsys, flags, message):
    assert preview.main([f"--dataset_dir={root}", f"--out={tmp_path}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_two_previews_into_one_folder_are_not_mixed(root, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    holder = {"host": socket.gethostname(), "pid": os.getppid(), "start": start_of(os.getppid())}
    (out / "writing.lock").write_text(json.dumps(holder))
    assert preview.main([f"--dataset_dir={root}", f"--out={out}", "--num_samples=1"]) == 2
    complaint(capsys, f"in use by process {os.getppid()}", "choose another --out")
    assert [path.name for path in out.iterdir()] == ["writing.lock"]


@pytest.mark.parametrize("name", ["x.", "a\tb", "deep /x"])
def test_a_folder_whose_name_another_system_would_change_is_not_made(name, root, tmp_path, capsys):
    assert preview.main([f"--dataset_dir={root}", f"--out={tmp_path / name}", "--num_samples=1"]) == 2
    complaint(capsys, "--out", "its name", "name another folder")
    assert not (tmp_path / name).exists()


def test_the_sheet_shows_every_sample(root):
    config = parse_config(PreviewConfig, [f"--dataset_dir={root}", "--sem_seg_data=ade20k"])
    processor = preview.processor_for(config.version, config.sequence_format, config.prompt_template)
    mixture = preview.build_mixture(config, processor)
    assert isinstance(mixture.fit, LengthLimit)
    shown = [preview.show(index, mixture[index]) for index in range(3)]
    one, three = preview.draw_contact_sheet(shown[:1]), preview.draw_contact_sheet(shown)
    assert one.width < three.width
    assert one.height < three.height
