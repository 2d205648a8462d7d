"""From the weights of a training run to a folder that stands alone."""

import copy
import json

import pytest
import torch

from merge_lora_weights_and_save_hf_model import main
from model.checkpoints.checkpoint import open_trained
from model.checkpoints.layouts import deepspeed
from model.checkpoints.layouts.base import DTYPES
from model.checkpoints.load import load_model
from model.checkpoints.trained import apply_trained
from model.checkpoints.weights import read_torch_file
from model.lora import add_lora, mark_trainable, merge
from tests.tiny_weights import edit_json, noise_image, save_in_shards
from tests.training_runs import save_settings, trainable, write_run, write_zero_checkpoint

CLASSES = ["dog", "tree", "sky", "pool table"]


@pytest.mark.parametrize(("stage", "num_ranks"), [(0, 1), (1, 1), (2, 1), (2, 3), (2, 12), (3, 1), (3, 3)])
def test_checkpoints_are_read_back_exactly(trained, tmp_path, stage, num_ranks):
    write_zero_checkpoint(tmp_path, trained, stage=stage, num_ranks=num_ranks)
    weights = deepspeed.read(tmp_path)
    expected = trainable(trained)
    assert expected.keys() <= weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("stage", "num_ranks"), [(1, 1), (2, 3), (3, 3)])
def test_checkpoints_are_read_as_deepspeed_reads_them(trained, tmp_path, stage, num_ranks, frozen):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    write_zero_checkpoint(tmp_path, trained, stage=stage, num_ranks=num_ranks, frozen=frozen)
    expected = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
    weights = deepspeed.read(tmp_path)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value.contiguous()) for name, value in expected.items())


def test_a_missing_rank_or_tag_is_an_error(trained, tmp_path):
    write_zero_checkpoint(tmp_path, trained, stage=2, num_ranks=3)
    with pytest.raises(FileNotFoundError, match="global_step7"):
        deepspeed.read(tmp_path, tag="global_step8")
    next(tmp_path.glob("*/*rank_1_*optim*")).unlink()
    with pytest.raises(FileNotFoundError, match="2 processes but 3"):
        deepspeed.read(tmp_path)


def test_a_checkpoint_with_code_in_it_is_not_run(trained, tmp_path):
    write_zero_checkpoint(tmp_path, trained, stage=2, num_ranks=1)
    torch.save({"optimizer_state_dict": print}, next(tmp_path.glob("*/*optim*")))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        deepspeed.read(tmp_path)


class _Getattr:
    """Pickled as `getattr(owner, name)`, as Python 3.11.2 writes the member of an enumeration."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


def test_members_of_enumerations_are_read_however_python_writes_them_and_nothing_else_is_got(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    def read(owner, name):
        torch.save({"stage": _Getattr(owner, name)}, tmp_path / "file.pt")
        with torch.serialization.safe_globals(deepspeed.safe_globals()):
            return read_torch_file(tmp_path / "file.pt")["stage"]

    assert read(ZeroStageEnum, "gradients") is ZeroStageEnum.gradients
    for owner, name in ((ZeroStageEnum, "mro"), (LossScaler, "backward")):
        with pytest.raises(ValueError, match=name):
            read(owner, name)


def test_what_may_be_called_while_reading_is_a_short_list():
    assert len(deepspeed.safe_globals()) == 5


def test_every_form_of_the_same_weights_is_read(trained, tmp_path):
    weights = trainable(trained)
    torch.save(weights, tmp_path / "file.bin")
    (tmp_path / "shards").mkdir()
    save_in_shards(tmp_path / "shards", weights, 3, safetensors=False)
    # zero_to_fp32.py . FOLDER/pytorch_model.bin makes a folder of that name
    (tmp_path / "run" / "pytorch_model.bin").mkdir(parents=True)
    save_in_shards(tmp_path / "run" / "pytorch_model.bin", weights, 2, safetensors=False)
    write_zero_checkpoint(tmp_path / "exp" / "ckpt_model", trained, stage=2, num_ranks=2)
    forms = ("file.bin", "shards", "run", "run/pytorch_model.bin", "exp", "exp/ckpt_model")
    for form in (*forms, "exp/ckpt_model/global_step7"):
        read = open_trained(tmp_path / form).weights
        assert all(torch.equal(read[name], value) for name, value in weights.items()), form
    for absent in ("nothing", ""):
        with pytest.raises(FileNotFoundError, match="--weight"):
            open_trained(tmp_path / absent)


def merged_by_hand(trained):
    model = copy.deepcopy(trained).eval()
    model.processor = trained.processor
    return merge(model)


def test_the_merged_folder_stands_alone_and_answers_as_the_trained_model(folders, trained, tmp_path):
    run = tmp_path / "runs" / "exp" / "ckpt_model"
    write_zero_checkpoint(run, trained, stage=2, num_ranks=2)
    save_settings(run, trained, folders)
    target = tmp_path / "merged"
    assert main(["--weight", str(run), "--save_path", str(target), "--precision", "fp32"]) == 0
    assert not list(tmp_path.glob(".*"))

    model, processor = load_model(target)
    expected = merged_by_hand(trained)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
    ours, theirs = model.segment(noise_image(), CLASSES), expected.segment(noise_image(), CLASSES)
    assert ours.present == theirs.present
    torch.testing.assert_close(ours.masks, theirs.masks, rtol=1e-4, atol=1e-4)
    assert processor.format == trained.processor.format
    card = (target / "README.md").read_text()
    assert "| Base model | llava |" in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (target / "config.json").read_text()


def test_flags_do_what_missing_settings_cannot(folders, trained, tmp_path):
    torch.save(trainable(trained), tmp_path / "pytorch_model.bin")
    arguments = ["--weight", str(tmp_path / "pytorch_model.bin"), "--precision", "fp32"]
    arguments += [f"--{name}={value}" for name, value in folders.flags.items()]
    arguments += ["--version", str(folders.llava)]
    assert main([*arguments, "--save_path", str(tmp_path / "a"), "--lora_alpha", "32"]) == 0
    assert main([*arguments, "--save_path", str(tmp_path / "b")]) == 0
    expected = merged_by_hand(trained).state_dict()
    name = "vlm.model.language_model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(load_model(tmp_path / "a")[0].state_dict()[name], expected[name])
    assert not torch.allclose(load_model(tmp_path / "b")[0].state_dict()[name], expected[name])


def test_settings_are_found_beside_the_file_that_zero_to_fp32_wrote(folders, trained, tmp_path):
    save_settings(tmp_path / "ckpt_model", trained, folders, precision="bf16")
    torch.save(trainable(trained), tmp_path / "pytorch_model.bin")
    target = tmp_path / "merged"
    arguments = ["--weight", str(tmp_path / "pytorch_model.bin"), "--save_path", str(target)]
    assert main(arguments) == 0
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("layout", "precision"), [("lasagna", None), ("lasagna", "bf16"), ("lasagna", "fp16"), ("lisa", "bf16")]
)
def test_a_merge_keeps_the_runs_precision_and_number_of_classes(
    folders, trained, tmp_path, precision, layout
):
    """Without a word of the run about it, the number format of the base, float32 here."""
    run = write_run(tmp_path / "run", trained, folders, precision=precision, num_all_classes=24)
    expected = DTYPES[precision or "fp32"]
    arguments = ["--weight", str(run), f"--layout={layout}"]
    assert main([*arguments, "--save_path", str(tmp_path / "new")]) == 0
    # Of runs from before config.json said it, run.yaml does.
    edit_json(next(run.parent.rglob("lasagna/config.json")), num_all_classes=None)
    assert main([*arguments, "--save_path", str(tmp_path / "old")]) == 0
    for place, classes in ((tmp_path / "new", 80), (tmp_path / "old", 24), (run, 24)):
        model, _ = load_model(place)
        assert model.dtype == expected, place
        assert model.config.num_all_classes == classes, place
    assert main([*arguments, "--save_path", str(tmp_path / "told"), "--precision=bf16"]) == 0
    assert load_model(tmp_path / "told")[0].dtype == torch.bfloat16


def test_a_merged_model_can_be_trained_further_and_merged_again(folders, trained, tmp_path):
    first = merged_by_hand(trained)
    first.save_pretrained(tmp_path / "first")
    model, _ = load_model(tmp_path / "first")
    model.vlm = add_lora(model.vlm, rank=2, alpha=4, dropout=0.0)
    mark_trainable(model)
    torch.save(trainable(model), tmp_path / "second.bin")
    again, _ = load_model(tmp_path / "first")
    apply_trained(again, open_trained(tmp_path / "second.bin"), lora_alpha=4)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_what_cannot_be_merged_is_said_in_one_line(folders, trained, tmp_path, capsys):
    weights = trainable(trained)
    without = {name: value for name, value in weights.items() if name != "seg_projector.0.bias"}
    torch.save(without, tmp_path / "missing.bin")
    torch.save({**weights, "vlm.extra.weight": torch.zeros(1)}, tmp_path / "unexpected.bin")
    torch.save(weights, tmp_path / "good.bin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    base = ["--version", str(folders.llava), *(f"--{n}={v}" for n, v in folders.flags.items())]
    target = str(tmp_path / "merged")
    cases = (
        ([*base, "--weight", f"{tmp_path}/missing.bin", "--save_path", target], "seg_projector.0.bias"),
        ([*base, "--weight", f"{tmp_path}/unexpected.bin", "--save_path", target], "vlm.extra.weight"),
        ([*base, "--weight", f"{tmp_path}/none.bin", "--save_path", target], "none.bin"),
        ([*base, "--weight", f"{tmp_path}/good.bin", "--save_path", f"{tmp_path}/full"], "exists"),
        ([*base, "--weight", f"{tmp_path}/good.bin"], "--save_path"),
        (["--weight", f"{tmp_path}/good.bin", "--save_path", target], "--version"),
    )
    for arguments, message in cases:
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "merged").exists()
