"""Where the files of a run are, asked from another working directory."""

from __future__ import annotations

import json

import pytest

from model.checkpoints.run_settings import read_run_settings
from model.errors import UserError
from utils.common.command_line import parse_config
from utils.common.config_files import save_config
from utils.config.training import TrainConfig
from utils.training.same_run import check_same_run


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with a base, in which a run was started with relative paths."""
    folder = tmp_path / "repository"
    (folder / "models" / "llava").mkdir(parents=True)
    (folder / "runs" / "x" / "ckpt_model" / "lasagna").mkdir(parents=True)
    (folder / "runs" / "x" / "ckpt_model" / "lasagna" / "config.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(folder)
    return folder


def settings_of(repository):
    return read_run_settings(repository / "runs" / "x" / "ckpt_model")


def run_yaml(repository):
    return repository / "runs" / "x" / "ckpt_model" / "lasagna" / "run.yaml"


def test_a_run_remembers_where_its_files_are(repository, monkeypatch):
    save_config(TrainConfig(version="models/llava", vision_tower="openai/clip"), run_yaml(repository))
    monkeypatch.chdir(repository.parent / "elsewhere")
    settings = settings_of(repository)
    assert settings.place_of("version") == str(repository / "models" / "llava")
    assert settings.place_of("vision_tower") == "openai/clip"  # a repository of the hub
    assert settings.place_of("vision_pretrained") is None
    config = parse_config(TrainConfig, [f"--config={run_yaml(repository)}"])
    assert config.version == str(repository / "models" / "llava")


def test_a_run_of_an_older_version_is_found_above_its_folder(repository, monkeypatch):
    run_yaml(repository).write_text("version: models/llava\nvision_tower: models/clip\n")
    monkeypatch.chdir(repository.parent / "elsewhere")
    settings = settings_of(repository)
    assert settings.place_of("version") == str(repository / "models" / "llava")
    with pytest.raises(
        FileNotFoundError, match=r"run\.yaml says .*--vision_tower models/clip, which is not there"
    ):
        settings.place_of("vision_tower")


def test_a_base_that_is_gone_is_told_with_the_file_that_names_it(repository, monkeypatch):
    save_config(TrainConfig(version="models/llava"), run_yaml(repository))
    (repository / "models" / "llava").rename(repository / "models" / "moved")
    monkeypatch.chdir(repository.parent / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"run\.yaml says that the run was started in .*repository with"
    ):
        settings_of(repository).place_of("version")


def test_a_run_goes_on_when_the_same_base_has_another_name(repository, monkeypatch):
    (repository / "link").symlink_to("models/llava")
    (repository / "boats").mkdir()
    path = run_yaml(repository)
    told = {"dataset": "own_sem:boats|val||vqa"}
    save_config(TrainConfig(version="models/llava", **told), path)
    absolute = {"dataset": f"own_sem:{repository}/boats|val||vqa"}
    for version in (str(repository / "models" / "llava"), "link", "./models/../models/llava"):
        check_same_run(TrainConfig(version=version, **told), path)
        check_same_run(TrainConfig(version=version, **absolute), path)
    monkeypatch.chdir(repository.parent / "elsewhere")
    check_same_run(TrainConfig(version="../repository/link", **absolute), path)
    with pytest.raises(ValueError, match="--version was"):
        check_same_run(TrainConfig(version="models/llava", **absolute), path)
    with pytest.raises(ValueError, match="--dataset was"):
        check_same_run(TrainConfig(version="../repository/link", **told), path)


@pytest.mark.parametrize("given", ["runs/base", "models/gone", "base", "./models/gone", "/data/llava"])
def test_the_base_that_an_adapter_names_is_never_looked_up_on_the_hub(given, repository):
    """PEFT writes a path as it was typed, which may look like a repository."""
    folder = repository / "adapter"
    folder.mkdir()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": given}))
    with pytest.raises(FileNotFoundError, match=f"names the base {given}, which is not a folder here; merge"):
        read_run_settings(folder).place_of("version")
    path.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "models/llava"}))
    assert read_run_settings(folder).place_of("version") == "models/llava"


def test_settings_without_the_models_configuration_are_not_made_up(tmp_path):
    folder = tmp_path / "runs" / "x" / "ckpt_model"
    (folder / "lasagna").mkdir(parents=True)
    (folder / "lasagna" / "run.yaml").write_text("version: models/llava\n")
    with pytest.raises(
        UserError, match=r"lasagna holds no config\.json, which says how the model was trained"
    ):
        read_run_settings(folder)
