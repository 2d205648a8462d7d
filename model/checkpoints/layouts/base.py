"""What a reader of a foreign layout hands over, and what the readers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from model.decoders.sam import SamSettings
from model.downloads import check_folder
from model.text.sequence import SequenceFormat

# Beside weights that are no folder of ours (DeepSpeed's, exported ones): config.json, processor, run.yaml.
SETTINGS_FOLDER = "lasagna"
# What --precision calls them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the caller of `load_model` wants of every reader."""

    vision_tower: str | None = None  # folder or hub name of a CLIP, where the checkpoint has none inside
    dtype: torch.dtype | None = None  # None: as stored
    attn_implementation: str = "sdpa"
    quantization: BitsAndBytesConfig | None = None  # of the language model's layers
    device: torch.device | None = None  # where quantised weights go, as they cannot be made elsewhere

    @property
    def placement(self) -> dict[str, Any]:
        """What `from_pretrained` is told about quantised loading."""
        if self.quantization is None:
            return {}
        return {"quantization_config": self.quantization, "device_map": {"": self.device}}


@dataclass(kw_only=True)
class Parts:
    """A checkpoint taken apart. `None` means that the checkpoint does not have the part."""

    folder: Path  # where the tokenizer is
    vlm: PreTrainedModel  # a Hugging Face LLaVA with its weights
    clip_processor: dict[str, Any] = field(default_factory=dict)  # preprocessor_config.json of the CLIP tower
    image_aspect_ratio: str = "square"
    sam: tuple[SamSettings, dict[str, Tensor]] | None = None
    seg_projector: dict[str, Tensor] | None = None  # named 0.weight, 0.bias, 2.weight, 2.bias
    format: SequenceFormat | None = None  # that the weights were trained with
    prompt: str | None = None  # template that the weights were trained with
    num_all_classes: int | None = None  # most classes that one query named in training


def local_folder(name: str | Path, *, flag: str) -> Path:
    """The folder `name`, or the local copy of the model repository of that name on the Hugging Face hub.

    Raises:
        FileNotFoundError: there is neither; the message names the flag that asked for it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path)
        return path
    looks_like_a_repository = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
    if looks_like_a_repository and path.parent.is_dir():
        # A misspelt folder: the hub's repository of that name would be a stranger's.
        there = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:12]) or "nothing"
        raise FileNotFoundError(f"{flag} {name} is not there; the folder {path.parent} holds {there}")
    if looks_like_a_repository and not path.exists():
        try:
            return Path(
                snapshot_download(str(name), ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.gguf"])
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"{flag} {name} is neither a folder here nor a repository that can be fetched: {error}"
            ) from error
    cure = "pass a folder, or the name of a repository on the Hugging Face hub"
    what = "a file; pass the folder of a whole model" if path.is_file() else f"not there; {cure}"
    raise FileNotFoundError(f"{flag} {name} is {what}")


def named_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The `torch_dtype` or `dtype` entry of a config.json as a dtype."""
    return getattr(torch, name.removeprefix("torch.")) if isinstance(name, str) else name
