"""train_ds.py with wrong flags and broken files: one line, and nothing is lost."""

from __future__ import annotations

import shutil

import pytest

from tests.commands import BASE, QUICK, SMALL_RUN, complaint, losses_of, run


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--learning_rat=1"], ["unknown flag --learning_rat"]),
        (["--bach_size=2"], ["unknown flag --bach_size", "did you mean --batch_size?"]),
        (["--dataset=sem_seg||video"], ["unknown source 'video'", "known: sem_seg, refer_seg"]),
        (["--sem_seg_data=ade20j"], ["--sem_seg_data", "unknown data set 'ade20j'", "ade20k"]),
        (["--val_dataset_list=refcoco|unc|vall"], ["refcoco", "'vall'", "testA"]),
        (["--val_dataset=nothing"], ["unknown data set 'nothing'"]),
        (["--sample_rates=1,2"], ["--sample_rates", "2 rates", "4 of --dataset"]),
        (["--format=xml"], ["--format", "'xml'", "paper"]),
        (["--conv_type=poem"], ["--conv_type", "'poem'", "llava_v1"]),
        (["--order_following=perhaps"], ["--order_following", "perhaps"]),
        (["--precision=int8"], ["--precision", "'int8'", "bf16"]),
        (["--precision=fp16"], ["--precision fp16 needs a GPU"]),
        (["--zero_stage=4"], ["--zero_stage", "4"]),
        (["--batch_size=0"], ["--batch_size must be > 0, got 0"]),
        (["--lr=nan"], ["--lr must be > 0, got nan"]),
        (["--lora_target_modules=nothing"], ["no layer of the model matches", "nothing"]),
        (["--version=./assets/nowhere"], ["--version ./assets/nowhere is not there", "pass a folder"]),
        (["--version=assets"], ["assets has no config.json"]),
        (["--version="], ["--version says which model"]),
        (["--vision_tower=./assets/nowhere"], ["./assets/nowhere is not there"]),
        (
            ["--vision_pretrained=assets/toy/sam.pth"],
            ["--vision_pretrained assets/toy/sam.pth does not exist"],
        ),
        (["--vision_pretrained=assets/toy"], ["--vision_pretrained assets/toy is a folder", ".pth"]),
        (["--dataset_dir=./nowhere"], ["--dataset_dir", "nowhere"]),
        (["--dataset_dir=./nowhere", "--no_eval"], ["nowhere", "--dataset_dir"]),
        (["--dataset_dir=EMPTY"], ["empty", "--dataset_dir"]),
        (["--dataset_dir=EMPTY", "--no_eval"], ["empty holds nothing", "--dataset_dir"]),
        (["--refer_seg_data=refcoco|google"], ["refcoco", "refs(google).p"]),
        (["--config=nowhere.yaml"], ["--config nowhere.yaml does not exist", "configs/"]),
        (["--log_base_dir=FILE"], ["--log_base_dir", "cannot be written to", "name another folder"]),
        (["--log_base_dir=FILE/x"], ["--log_base_dir", "cannot be written to"]),
        (["--exp_name=" + "long" * 70], ["--exp_name", "of at most 100 characters"]),
        (["--config=BAD_KEY"], ["unknown setting 'batchsize'", "did you mean 'batch_size'?"]),
        (["--config=BAD_VALUE"], ["--batch_size", "two"]),
        (["--config=NOT_YAML"], ["is not YAML"]),
    ],
    ids=lambda value: value[0] if str(value[0]).startswith("-") else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(flags, parts, at_work, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    files = {"BAD_KEY": "batchsize: 2\n", "BAD_VALUE": "batch_size: two\n", "NOT_YAML": "batch_size: [2\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        flags = [flag.replace(name, str(tmp_path / name)) for flag in flags]
    (tmp_path / "file").write_text("")
    flags = [flag.replace("FILE", str(tmp_path / "file")) for flag in flags]
    flags = [flag.replace("EMPTY", str(tmp_path / "empty")) for flag in flags]
    small = (*SMALL_RUN, "--val_dataset_list=ade20k", f"--log_base_dir={tmp_path / 'runs'}")
    assert run("train_ds", *BASE, *small, *flags) == 2
    line = complaint(capsys, *parts)
    assert line.startswith("train_ds.py: ")
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def broken_world(toy_world, tmp_path):
    """The toy world's ADE20K to spoil: (folder, a function that spoils a split's first images)."""
    world = tmp_path / "world"
    shutil.copytree(toy_world / "ade20k", world / "ade20k")

    def spoil(split: str, number: int) -> None:
        for path in sorted((world / "ade20k" / "images" / split).iterdir())[:number]:
            path.write_bytes(b"not an image")

    return world, spoil


ONLY_ADE = ("--dataset=sem_seg", "--sem_seg_data=ade20k", "--steps_per_epoch=4", "--epochs=1")


def test_images_that_do_not_decode_are_replaced_and_counted(broken_world, at_work, tmp_path):
    world, spoil = broken_world
    spoil("training", 4)
    flags = [*QUICK, *ONLY_ADE, f"--dataset_dir={world}", f"--log_base_dir={tmp_path}", "--exp_name=skips"]
    assert run("train_ds", *flags) == 0
    assert sum(line["skipped"] for line in losses_of(tmp_path / "skips")) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_a_readable_image_is_one_line(workers, broken_world, at_work, tmp_path, capsys):
    world, spoil = broken_world
    spoil("training", 8)
    flags = [*QUICK, *ONLY_ADE, f"--dataset_dir={world}", f"--log_base_dir={tmp_path / 'runs'}"]
    assert run("train_ds", *flags, f"--workers={workers}") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train_ds.py: ade20k|train: 100 unusable items in a row; the last: ")
    assert "cannot be decoded" in last
    assert not list(tmp_path.glob("runs/*/ckpt_model"))


def test_a_validation_that_fails_loses_no_training(broken_world, at_work, tmp_path, caplog):
    world, spoil = broken_world
    spoil("validation", 1)
    flags = [*BASE, *SMALL_RUN, *ONLY_ADE, f"--dataset_dir={world}", f"--log_base_dir={tmp_path}",
             "--exp_name=fails", "--steps_per_epoch=1", "--epochs=2", "--val_dataset_list=ade20k",
             "--batch_size=1"]  # fmt: skip
    assert run("train_ds", *flags) == 0
    assert "step 1: the validation failed, and training goes on: " in caplog.text
    assert "cannot be decoded" in caplog.text
    assert "Traceback" not in caplog.text
    assert (tmp_path / "fails" / "ckpt_model" / "latest").read_text() == "global_step2"
    assert (tmp_path / "fails" / "ckpt_best" / "latest").read_text() == "global_step2"
    assert run("train_ds", *flags, "--no_eval") == 0
    assert [line["step"] for line in losses_of(tmp_path / "fails")] == [1, 2]
