"""Another base than LLaVA, from its folder to an answer, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from model.checkpoints.load import load_model
from model.lasagna import LasagnaForConditionalGeneration
from tests.commands import run
from tests.tiny_bases import write_base_model
from tests.tiny_weights import edit_json, noise_image, write_sam

BASE = ("--dataset", "sem_seg||refer_seg||vqa", "--sem_seg_data", "ade20k", "--refer_seg_data", "refcoco")
SHORT = (
    *("--epochs", "1", "--steps_per_epoch", "3", "--grad_accumulation_steps", "1", "--batch_size", "2"),
    *("--workers", "0", "--num_threads", "1", "--precision", "fp32", "--max_val_samples", "1"),
    *("--val_dataset_list", "refcoco|unc|val"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL, with sam.pth beside it."""
    folder = tmp_path_factory.mktemp("qwen") / "base"
    write_base_model("qwen3_vl", folder)
    write_sam(folder.parent / "sam.pth")
    return folder


def arguments(base: Path) -> tuple[str, ...]:
    return "--version", str(base), "--vision_pretrained", str(base.parent / "sam.pth"), *BASE, *SHORT


def test_a_run_is_merged_as_in_memory_and_goes_on(base, at_work, capsys):
    name = ("--exp_name", "qwen", "--max_image_tokens", "6")
    assert run("train_ds", *arguments(base), *name) == 0
    folder, weights = at_work / "runs/qwen/merged", at_work / "runs/qwen/ckpt_model"
    assert run("merge_lora_weights_and_save_hf_model", "--weight", weights, "--save_path", folder) == 0
    assert "family `qwen3_vl`" in (folder / "README.md").read_text()
    merged, processor = load_model(folder)
    in_memory, _ = load_model(weights)
    for key, value in in_memory.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key)
    # What the run was told about images is stored with the model.
    assert processor.images.prepare(noise_image(300, 300)).placeholder.num_image_tokens <= 6
    before, _ = load_model(base, sam=str(base.parent / "sam.pth"))
    assert not torch.equal(merged.seg_projector[0].weight, before.seg_projector[0].weight)

    image = at_work / "runs/qwen/image.png"
    from PIL import Image

    Image.fromarray(noise_image(60, 90)).save(image)
    capsys.readouterr()
    out = ("--vis_save_path", str(at_work / "runs/qwen/answer"))
    assert run("chat", "--version", folder, "--image", image, "--classes", "dog,cat", *out) == 0
    assert "dog" in capsys.readouterr().out
    assert run("train_ds", *arguments(folder), "--exp_name", "qwen_warm", "--no_eval") == 0


def test_what_a_base_cannot_do_is_told(base, at_work, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    edit_json(other / "config.json", model_type="kosmos-2")
    blind = tmp_path / "blind"
    shutil.copytree(base, blind)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (blind / name).unlink(missing_ok=True)
    dumb = tmp_path / "dumb"
    shutil.copytree(base, dumb)
    for name in ("chat_template.jinja", "chat_template.json"):
        (dumb / name).unlink(missing_ok=True)
    for folder, flags, told in (
        (other, (), ("kosmos-2", "qwen3_vl", "smolvlm")),
        (blind, (), ("no image processor",)),
        (dumb, (), ("chat template",)),
        (base, ("--conv_type", "llava_v1"), ("'llava_v1'", "--conv_type")),
        (base, ("--min_image_tokens", "64", "--max_image_tokens", "8"), ("64", "8", "--min_image_tokens")),
        (base, ("--max_image_tokens", "0"), ("--max_image_tokens", "> 0")),
    ):
        capsys.readouterr()
        assert run("train_ds", *arguments(base), "--version", folder, *flags, "--exp_name", "refused") == 2
        message = capsys.readouterr().err
        assert all(word in message for word in told), message
        assert "Traceback" not in message


def test_the_released_layout_is_llava_s(base, at_work):
    model, _ = load_model(base, sam=str(base.parent / "sam.pth"))
    assert isinstance(model, LasagnaForConditionalGeneration)
    from model.checkpoints.layouts.write_released import write_released
    from model.errors import UserError

    with pytest.raises(UserError, match="--layout lisa is the layout of LLaVA"):
        write_released(model, at_work / "released")
