"""The Protocols of checkpoint layouts, the parts that a reader returns, and what the readers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from model.backbones.base_processor import BaseProcessor
from model.checkpoints.lazy import StoredWeights
from model.decoders.base import DecoderSettings
from model.errors import UserError
from model.strict_loading import load_pretrained
from model.text.format import SequenceFormat

if TYPE_CHECKING:
    from model.lasagna import LasagnaForConditionalGeneration

# Holds config.json, processor and run.yaml beside weights in the layout of another tool (DeepSpeed's, exported).
SETTINGS_FOLDER = "lasagna"
CHECKPOINT_FOLDER = "ckpt_model"  # of a run, the newest; train_ds.py keeps the best one in ckpt_best
# A model that its config.json makes larger than its weights by this factor is not allocated.
LARGEST_EXCESS = 2
ATTENTION = "sdpa"  # what every part is loaded with; `load_model` gives the language model what was asked for
KNOWN_DTYPES = ("float32", "bfloat16", "float16")  # in a config.json
# What --precision calls them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Arguments of `load_model` that every reader gets."""

    vision_tower: str | None = None  # folder or hub name of a CLIP, where the checkpoint has none inside
    dtype: torch.dtype | None = None  # None: as stored
    quantization: BitsAndBytesConfig | None = None  # of the language model's layers
    device: torch.device | None = None  # where quantised weights go, as they cannot be made elsewhere

    @property
    def placement(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` for quantised loading."""
        if self.quantization is None:
            return {}
        return {"quantization_config": self.quantization, "device_map": {"": self.device}}


@dataclass(kw_only=True)
class Parts:
    """A checkpoint taken apart. `None` means that the checkpoint does not have the part."""

    folder: Path  # where the tokenizer is
    vlm: PreTrainedModel  # a Hugging Face LLaVA, or another image-text-to-text model, with its weights
    base_processor: BaseProcessor | None = None  # of another model than a LLaVA
    clip_processor: dict[str, Any] = field(default_factory=dict)  # preprocessor_config.json of the CLIP tower
    image_aspect_ratio: str = "square"
    sam: tuple[DecoderSettings, dict[str, Tensor]] | None = None
    seg_projector: dict[str, Tensor] | None = None  # named 0.weight, 0.bias, 2.weight, 2.bias
    format: SequenceFormat | None = None  # that the weights were trained with
    prompt: str | None = None  # template that the weights were trained with
    num_all_classes: int | None = None  # maximum number of classes of a query in training


class Layout(Protocol):
    """A module that reads whole models of one layout."""

    NAME: str  # words for messages and the log

    def recognises(self, config: dict[str, Any]) -> bool:
        """Whether a folder with this config.json has the layout."""
        ...

    def read(self, folder: Path, options: ReadOptions) -> Parts | LasagnaForConditionalGeneration:
        """The parts of a foreign model, or a model of ours with its processor.

        Raises:
            FileNotFoundError, ValueError: something is absent or does not fit; the message names the flag.
        """
        ...


class TrainedLayout(Protocol):
    """A module that reads the weights of a training run in one layout."""

    def describe(self, path: Path, tag: str | None = None) -> str | None:
        """Words for messages and the log; None if something else lies at `path`. No weights are read.

        Args:
            tag: which save, where the layout holds several; the newest if not given.
        """
        ...

    def read(self, path: Path, tag: str | None = None) -> dict[str, Tensor]:
        """The weights under the names that they have in training.

        Raises:
            FileNotFoundError, ValueError: files are missing, damaged or do not belong together.
        """
        ...


def load_vlm(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    folder: Path,
    options: ReadOptions,
) -> PreTrainedModel:
    """A folder of transformers, strictly; UserError if `config`, from its config.json, describes another model."""
    check_size(kind, config, StoredWeights(folder).num_values, folder=folder)
    return load_pretrained(
        kind,
        folder,
        source=str(folder),
        dtype=options.dtype or "auto",
        attn_implementation=ATTENTION,
        **options.placement,
    )


def check_size(
    kind: type[PreTrainedModel], config: PreTrainedConfig, num_stored: int, *, folder: Path
) -> None:
    """Whether weights of `num_stored` values can be those of a model of this configuration, before it is allocated.

    An entry that config.json lacks has the default of a 7B model, which would be built in full before strict loading
    lists what does not fit.

    Raises:
        UserError: the model would have more than `LARGEST_EXCESS` times as many values.
    """
    try:
        with torch.device("meta"):
            described = sum(parameter.numel() for parameter in kind(config).parameters())
    except UserError:
        raise
    except Exception as problem:  # the classes of a model raise whatever a wrong value leads to
        raise UserError(
            f"{folder}/config.json describes no model that can be built ({type(problem).__name__}: {problem}); copy "
            "config.json from where the weights come from"
        ) from problem
    check_feature_layer(getattr(config, "vlm_config", config), folder)
    if described > LARGEST_EXCESS * num_stored:
        raise UserError(
            f"{folder}/config.json describes a model of {described:,} parameters, but the weights have "
            f"{num_stored:,}; copy config.json from where the weights come from"
        )


def check_feature_layer(config: PreTrainedConfig, folder: Path) -> None:
    """UserError unless the vision tower has the layer whose features are used."""
    if not hasattr(config, "vision_feature_layer"):  # of families with CLIP or its like
        return
    chosen = config.vision_feature_layer
    num_states = config.vision_config.num_hidden_layers + 1
    for layer in chosen if isinstance(chosen, list) else [chosen]:
        if not -num_states <= layer < num_states:
            raise UserError(
                f"{folder}/config.json takes the features of layer {layer} of a vision tower of {num_states - 1} "
                "layers; copy config.json from where the weights come from"
            )


def named_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The `torch_dtype` or `dtype` entry of a config.json as a dtype; UserError for what is none of weights."""
    if name is None or isinstance(name, torch.dtype):
        return name
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype {name!r} in config.json is none of weights; known: {', '.join(KNOWN_DTYPES)}")
    return dtype
