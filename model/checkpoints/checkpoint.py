"""Identifies what is at a path: a whole model in a known layout, or the weights of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.backbones.build import BACKBONES
from model.checkpoints.finite import require_finite
from model.checkpoints.layouts import adapter, deepspeed, exported, hf_llava, hf_vlm, llava_v1, ours, released
from model.checkpoints.layouts.base import Layout, TrainedLayout, named_dtype
from model.checkpoints.layouts.mask_decoder import HF_KINDS, is_mask_decoder_file
from model.checkpoints.lazy import StoredWeights
from model.checkpoints.run_settings import RunSettings, read_run_settings
from model.checkpoints.weights import weight_files
from model.errors import UserError
from model.files import read_json
from model.folders import local_folder
from model.plausible import check_plausible

# In the order in which they are tried.
WHOLE_LAYOUTS: tuple[Layout, ...] = (ours, hf_llava, hf_vlm, released, llava_v1)
TRAINED_LAYOUTS: tuple[TrainedLayout, ...] = (adapter, deepspeed, exported)
# model_type of folders that people pass by mistake, and what to do with them.
WRONG_KINDS = {
    "clip": "a CLIP; pass it as --vision_tower",
    "clip_vision_model": "a CLIP tower; pass it as --vision_tower",
    "llama": "a language model without a vision tower; pass a LLaVA that was trained from it",
    **dict.fromkeys(HF_KINDS, "a mask decoder; pass it as --vision_pretrained, and a LLaVA as --version"),
}


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """A folder that holds a whole model."""

    path: Path
    layout: Layout
    config: dict[str, Any]  # config.json

    @property
    def kind(self) -> str:
        """Its description in messages and the log."""
        return self.layout.NAME

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the weights; None if config.json does not state it."""
        return named_dtype(self.config.get("dtype") or self.config.get("torch_dtype"))

    @cached_property
    def stored(self) -> StoredWeights:
        """The weights on disk, read one at a time."""
        return StoredWeights(self.path)


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """The weights of a training run, to be applied to the model that it started from."""

    path: Path
    layout: TrainedLayout
    kind: str  # words for messages and the log
    tag: str | None  # which save of a DeepSpeed checkpoint; None: the newest
    settings: RunSettings

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the run; None if it is unknown."""
        return self.settings.dtype

    @property
    def holds_adapters_only(self) -> bool:
        """Whether trainable weights other than adapters may be missing, as in a PEFT folder."""
        return self.layout is adapter

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The weights under the names they have in training, read when they are first asked for.

        Raises:
            FileNotFoundError, ValueError: files are missing, damaged or do not belong together.
            UserError: a weight is not finite.
        """
        weights = self.layout.read(self.path, self.tag)
        require_finite(weights, source=str(self.path))
        return weights


Checkpoint = WholeModel | TrainedWeights


def open_checkpoint(path: str | Path, tag: str | None = None) -> Checkpoint:
    """Recognises what is passed as --version; no weights are read.

    Args:
        path: file, folder, or name of a repository on the Hugging Face hub.
        tag: which save of a DeepSpeed checkpoint, if not the newest.

    Raises:
        FileNotFoundError: nothing is there, or nothing says what it is.
        ValueError: it is something else; the message says which flag it belongs to.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        place = local_folder(path, flag="--version")
    elif is_mask_decoder_file(place):
        raise UserError(
            f"--version {place} is a mask decoder; pass it as --vision_pretrained, and a LLaVA as --version"
        )
    config = read_json(place / "config.json")
    if config:
        check_plausible(place)
    # A PEFT folder of LLaVA's authors has the config.json of its base.
    if not config or adapter.is_adapter(place):
        if trained := _trained(place, tag):
            return trained
        raise FileNotFoundError(
            f"{place} has no config.json; pass the folder of a whole model "
            "(of a training run, what merge_lora_weights_and_save_hf_model.py makes of it, or its ckpt_model)"
        )
    for layout in WHOLE_LAYOUTS:
        if layout.recognises(config):
            return WholeModel(path=place, layout=layout, config=config)
    kind = config.get("model_type")
    if kind in WRONG_KINDS:
        raise UserError(f"--version {place} is {WRONG_KINDS[kind]}")
    raise UserError(
        f"{place}/config.json has model_type {kind!r} and architectures {config.get('architectures')}; "
        f"known layouts: {', '.join(layout.NAME for layout in WHOLE_LAYOUTS)}; known families of base models: "
        f"{', '.join(sorted(BACKBONES))}"
    )


def open_trained(path: str | Path, tag: str | None = None) -> TrainedWeights:
    """Recognises what is passed as --weight; no weights are read. Any of:

    - a run's folder, its checkpoint folder or the folder of one tag, as DeepSpeed writes them;
    - what zero_to_fp32.py makes of it: a file, or a folder of shards (also one called pytorch_model.bin);
    - a PEFT folder.

    Raises:
        FileNotFoundError: there is nothing of that kind; the message says what was looked for.
        ValueError: it is a whole model, or one file of several.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.name.endswith(("_model_states.pt", "_optim_states.pt")):
        raise UserError(f"--weight {path} is one file of a DeepSpeed checkpoint; pass its folder")
    if not path.exists():
        raise FileNotFoundError(f"--weight {path} does not exist")
    trained = _trained(path, tag)
    is_whole = path.is_dir() and read_json(path / "config.json").get("model_type")
    if is_whole and (trained is None or trained.layout is exported):
        raise UserError(
            f"--weight {path} is a whole model, in which nothing is left to merge; pass it as --version, or the "
            "ckpt_model folder of a run as --weight"
        )
    if trained is None:
        try:
            weight_files(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"--weight {path} is neither a DeepSpeed checkpoint (with `latest`) nor what zero_to_fp32.py "
                f"writes: {error}"
            ) from error
        raise AssertionError(f"{path} has weight files and no layout")
    return trained


def _trained(path: Path, tag: str | None) -> TrainedWeights | None:
    """The trained weights at `path`, of the first layout that fits; None if there are none."""
    for layout in TRAINED_LAYOUTS:
        if kind := layout.describe(path, tag):
            return TrainedWeights(
                path=path, layout=layout, kind=kind, tag=tag, settings=read_run_settings(path)
            )
    return None
