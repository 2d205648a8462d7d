"""train_ds.py with --sam_cache on the toy world: every image is encoded once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model import encoder_precision
from model.decoders.sam import SamSegmenter
from tests.commands import BASE, SMALL_RUN, complaint, losses_of, run
from tests.two_processes import run_in_two

# Eight draws of as many images, so that some come twice.
FLAGS = (*BASE, *SMALL_RUN, "--no_eval", "--dataset=sem_seg", "--sem_seg_data=ade20k", "--num_all_classes=4",
         "--batch_size=1", "--epochs=1", "--steps_per_epoch=8")  # fmt: skip


@pytest.fixture
def train(at_work, tmp_path) -> Callable[..., tuple[list[dict[str, float]], int]]:
    """Starts a run; gives the losses of its steps and how many images SAM encoded."""

    def start(name: str, *flags: str) -> tuple[list[dict[str, float]], int]:
        encoded = []
        encode = SamSegmenter.encode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                SamSegmenter,
                "encode",
                lambda self, images, sizes: encoded.append(len(images)) or encode(self, images, sizes),
            )
            assert run("train_ds", *FLAGS, *flags, f"--log_base_dir={tmp_path}", f"--exp_name={name}") == 0
        return losses_of(tmp_path / name), sum(encoded)

    return start


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_image_is_encoded_once_and_the_losses_stay_the_same(train, precision, tmp_path, capsys):
    cache = f"--sam_cache={tmp_path / 'cache'}"
    plain, encoded = train("plain", f"--precision={precision}")
    assert encoded == 8
    filling, encoded = train("filling", f"--precision={precision}", cache)
    assert filling == plain
    assert encoded == len(entries(tmp_path / "cache")) < 8
    assert "embeddings of 0 images" in capsys.readouterr().out
    filled, encoded = train(
        "filled", f"--precision={precision}", cache, "--workers=2"
    )  # keys of other processes
    assert filled == plain
    assert encoded == 0
    assert "embeddings of" in capsys.readouterr().out


def test_encoders_in_bfloat16_are_announced_and_never_share_entries_with_float32(
    train, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(encoder_precision, "cpu_has_bf16", lambda: True)
    cache, cast = f"--sam_cache={tmp_path / 'cache'}", "--encoder_precision=bf16"
    exact, encoded = train("exact", "--precision=fp32", cache)
    plain, _ = train("plain", "--precision=fp32", cast)
    assert "fp32, image encoders bf16, ZeRO 2" in " ".join(capsys.readouterr().out.split())
    filling, again = train("filling", "--precision=fp32", cache, cast)
    assert filling == plain != exact
    assert again == encoded  # none of the exact entries was taken
    for ours, theirs in zip(plain, exact, strict=True):
        assert ours == pytest.approx(theirs, rel=0.1, abs=0.01)
    assert run("train_ds", *FLAGS, "--precision=fp32", cast, f"--log_base_dir={tmp_path}", "--exp_name=exact",
               "--epochs=2") == 2  # fmt: skip
    complaint(capsys, "--encoder_precision was '', is 'bf16'")


@pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor.*")
def test_zero_3_names_the_entries_as_the_other_stages_do(train, tmp_path):
    short = ("--precision=fp32", "--steps_per_epoch=2", "--lora_dropout=0")
    expected, _ = train("two", *short, f"--sam_cache={tmp_path / 'cache_2'}")
    ours, encoded = train("three", *short, "--zero_stage=3", f"--sam_cache={tmp_path / 'cache_3'}")
    assert encoded == len(entries(tmp_path / "cache_3"))
    assert entries(tmp_path / "cache_3") == entries(tmp_path / "cache_2")
    for one, other in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_two_processes_under_zero_3_encode_together_what_one_of_them_misses(train, at_work, tmp_path):
    """A process that went on alone would wait for the others' weights without end."""
    half = (
        "--precision=fp32",
        "--lora_dropout=0",
        f"--sam_cache={tmp_path / 'cache'}",
        "--steps_per_epoch=4",
    )
    flags = [*FLAGS, *half, "--zero_stage=3", f"--log_base_dir={tmp_path}", "--exp_name=two"]
    run_in_two([["train_ds", *flags]], at_work)
    one, encoded = train("one", *half, "--grad_accumulation_steps=2")
    assert encoded == 0  # the two have left everything
    for ours, theirs in zip(losses_of(tmp_path / "two"), one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_full_cache_is_used_as_it_is(train, tmp_path):
    # An entry is 32 x 4 x 4 numbers of 4 bytes, and a header.
    flags = ("--precision=fp32", f"--sam_cache={tmp_path / 'cache'}", "--sam_cache_gb=0.000008")
    first, _ = train("first", *flags)
    again, encoded = train("again", *flags)
    assert again == first
    assert len(entries(tmp_path / "cache")) == 3
    assert 0 < encoded < 8


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--sam_cache_gb=5"], ["--sam_cache_gb 5 needs --sam_cache"]),
        (["--sam_cache=c", "--sam_cache_gb=-1"], ["--sam_cache_gb must be >= 0, got -1"]),
        (["--sam_cache=c", "--sam_cache_gb=much"], ["--sam_cache_gb", "much"]),
        (["--sam_cache=FILE"], ["--sam_cache", "file cannot be written to", "name another folder"]),
        (
            ["--sam_cache=FILE/below"],
            ["--sam_cache", "file/below cannot be written to", "name another folder"],
        ),
    ],
)
def test_a_mistake_is_one_line(flags, parts, at_work, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    flags = [flag.replace("FILE", str(tmp_path / "file")) for flag in flags]
    assert run("train_ds", *FLAGS, *flags, f"--log_base_dir={tmp_path / 'runs'}") == 2
    assert complaint(capsys, *parts).startswith("train_ds.py: ")
    assert not (tmp_path / "runs").exists()
