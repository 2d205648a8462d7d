"""What a training run leaves, without training: a model whose weights have moved, its settings, its checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from model.lasagna import LasagnaForConditionalGeneration
from model.loading import load_model
from model.lora import TARGET_PATTERN, add_lora, mark_trainable
from tests.tiny_weights import TinyFolders

RANK, ALPHA = 4, 32.0


def trained_model(
    folders: TinyFolders,
    *,
    base: tuple[Path, dict[str, str]] | None = None,
    rank: int = RANK,
    pattern: str = TARGET_PATTERN,
    dtype: torch.dtype = torch.float32,
) -> LasagnaForConditionalGeneration:
    """A model as after training: adapters beside the weights, every trained weight moved.

    `base` is another model to start from, with the flags that it needs.
    """
    folder, flags = base or (folders.llava, folders.parts)
    model, _ = load_model(folder, dtype=dtype, **flags)
    model.vlm = add_lora(model.vlm, rank=rank, alpha=ALPHA, dropout=0.1, target_pattern=pattern)
    mark_trainable(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def trainable(model: nn.Module) -> OrderedDict[str, Tensor]:
    """What DeepSpeed saves of it."""
    return OrderedDict((n, p.detach().clone()) for n, p in model.named_parameters() if p.requires_grad)


def save_settings(
    folder: Path, model: LasagnaForConditionalGeneration, folders: TinyFolders, **changes: object
) -> None:
    """What train_ds.py puts beside its checkpoints."""
    settings = folder / "lasagna"
    settings.mkdir(parents=True)
    model.config.save_pretrained(settings)
    model.processor.save_pretrained(settings)
    run = {"version": str(folders.llava), "lora_r": RANK, "lora_alpha": ALPHA, **folders.flags, **changes}
    (settings / "run.yaml").write_text(yaml.safe_dump(run))


def write_run(
    folder: Path, model: LasagnaForConditionalGeneration, folders: TinyFolders, **changes: object
) -> Path:
    """Trained weights as zero_to_fp32.py writes them, and the settings beside; the path of the weights."""
    save_settings(folder / "ckpt_model", model, folders, **changes)
    torch.save(trainable(model), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"
