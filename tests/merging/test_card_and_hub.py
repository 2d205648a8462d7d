"""What a merged folder says of itself, and how it is shared."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard

import utils.common.hub as hub
from merge_lora_weights_and_save_hf_model import main
from tests.training_runs import trainable, write_run
from utils.reports.report import Report, Result
from utils.reports.write import write_report


def test_the_card_says_base_data_recipe_numbers_and_licences(trained, folders, tmp_path):
    changes = {
        "dataset": "sem_seg||own_sem:/home/somebody/mine",
        "sem_seg_data": "ade20k||cocostuff",
        "lr": 0.0003,
        "epochs": 7,
        "dataset_dir": "/home/somebody/data",
    }
    run = write_run(tmp_path / "run", trained, folders, **changes)
    result = Result(
        dataset="refcoco|unc|val", task="referring", num_samples=9, sections={"referring": {"ciou": 0.75}}
    )
    own = replace(result, dataset="own_coco:/home/somebody/mine.json|images=/home/somebody/img")
    write_report(
        Report(model="x", protocol={"answers": "generated"}, results=(result, own)), tmp_path / "report"
    )
    arguments = [
        "--weight",
        str(run),
        "--save_path",
        str(tmp_path / "m"),
        "--report",
        str(tmp_path / "report"),
    ]
    assert main(arguments) == 0
    card = (tmp_path / "m" / "README.md").read_text()
    for part in (
        "| Base model | llava |",
        "| sem_seg_data | `ade20k\\|\\|cocostuff` |",
        "| dataset | `sem_seg\\|\\|own_sem:mine` |",
        "| lr | `0.0003` |",
        "| epochs | `7` |",
        "| referring.ciou | refcoco\\|unc\\|val | 9 | 0.750 |",
        "answers: generated",
        "Llama 2 Community License",
        "CC BY-NC 4.0",
        "Apache License 2.0",
        "license: other",
    ):
        assert part in card, part
    data = ModelCard.load(tmp_path / "m" / "README.md").data  # as the hub reads it
    assert (data.license, data.pipeline_tag, data.library_name) == (
        "other",
        "image-segmentation",
        "transformers",
    )
    measured, measured_on_own = data.eval_results
    assert measured_on_own.dataset_name == "own_coco:mine.json|images=img"
    assert (measured.dataset_name, measured.metric_name) == ("refcoco|unc|val", "referring.ciou")
    assert measured.metric_value == 0.75
    assert "somebody" not in card
    assert str(tmp_path) not in card


def test_a_card_without_settings_and_numbers_says_so(folders, trained, tmp_path):
    torch.save(trainable(trained), tmp_path / "weights.bin")
    flags = [f"--{key}={value}" for key, value in folders.flags.items()]
    base = ["--version", str(folders.llava), *flags, "--lora_alpha=32"]
    assert main(["--weight", str(tmp_path / "weights.bin"), *base, "--save_path", str(tmp_path / "m")]) == 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert "did not come with its weights" in card
    assert "No evaluation" in card


class FakeHub:
    """HfApi without a network."""

    uploads: list[tuple[str, list[str], bool]]
    logged_in = True
    full = False

    def whoami(self):
        if not self.logged_in:
            raise hub.LocalTokenNotFoundError("no token")
        return {"name": "somebody"}

    def create_repo(self, name, *, private, exist_ok):
        self.private = private
        return namedtuple("RepoUrl", "repo_id")(f"somebody/{name}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.full:
            raise OSError("no space on the hub")
        self.uploads.append((repo_id, sorted(file.name for file in folder_path.iterdir()), self.private))


@pytest.fixture
def fake_hub(monkeypatch):
    monkeypatch.setattr(FakeHub, "uploads", [], raising=False)
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    return FakeHub


def test_the_folder_is_uploaded_to_a_private_repository(fake_hub, arguments, capsys):
    assert main([*arguments, "--push_to_hub", "lasagna-tiny"]) == 0
    [(name, files, private)] = fake_hub.uploads
    assert name == "somebody/lasagna-tiny"
    assert private
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(files)
    assert "uploaded" in capsys.readouterr().out


def test_who_is_not_logged_in_hears_it_before_the_merge(fake_hub, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(FakeHub, "logged_in", False)
    assert main([*arguments, "--push_to_hub", "lasagna-tiny"]) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_a_failed_upload_keeps_the_folder(fake_hub, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(FakeHub, "full", True)
    assert main([*arguments, "--push_to_hub", "lasagna-tiny"]) == 2
    error = capsys.readouterr().err
    assert "no space on the hub" in error
    assert "is complete" in error
    assert (tmp_path / "out" / "merged" / "config.json").is_file()
