"""A base model and the weights of a training run become one folder, without the whole model in memory.

The layers of the language model are read one weight at a time, get their adapters, and are written. Everything else -
embeddings, CLIP, SAM, projections, the new tokens - is the *frame* (model/checkpoints/frame.py), which is loaded as
it always is.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from model.checkpoints.finite import require_finite
from model.checkpoints.frame import check_space, full_config, layer_names, text_config_of, write_frame
from model.checkpoints.layouts import released
from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.checkpoints.layouts.training import (
    DEFAULT_ALPHA,
    LORA_NAME,
    copy_trained,
    has_layer,
    read_run_settings,
    read_training_weights,
)
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.lazy import StoredWeights
from model.checkpoints.load import LAYOUTS, load_model, recognise
from model.checkpoints.write import SHARD_SIZE, finished_folder, require_space, verify, write_shards
from model.config import LasagnaConfig
from model.errors import UserError
from model.folders import local_folder
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_delta, add_lora
from model.processor import LasagnaProcessor
from model.strict_loading import check_fit
from model.text.format import SequenceFormat

logger = logging.getLogger(__name__)


class MergedModel:
    """The merged model as far as writing it needs: weights are computed when they are read.

    It has the parts of a model that `model.checkpoints.layouts.write_released` asks for.
    """

    def __init__(
        self,
        base: Path,
        frame: LasagnaForConditionalGeneration,
        layers: StoredWeights,
        text_config: PreTrainedConfig,
    ) -> None:
        self.processor, self.dtype = frame.processor, frame.dtype
        self.vlm = self.llava = frame.llava  # without its layers
        self.config = full_config(frame, text_config)
        self.shell = empty_model(self.config)
        self._frame = frame.state_dict()
        self._base, self._layers, self._stored_names = base, layers, layer_names(layers)
        self._deltas: dict[str, tuple[Tensor, Tensor, float]] = {}  # adapters A, B and their scale
        self._trained: dict[str, Tensor] = {}  # layers' weights that the run stored whole
        expected = {name: value for name, value in self.shell.state_dict().items() if name not in self._frame}
        stored = {
            name: torch.empty(layers.shapes[key], device="meta") for name, key in self._stored_names.items()
        }
        check_fit(expected, stored, source=str(base))
        tied = set(getattr(self.shell, "all_tied_weights_keys", {}))
        self.shapes = {name: v.shape for name, v in self.shell.state_dict().items() if name not in tied}

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each weight, in the order of the model."""
        return {
            name: self._frame[name].nbytes if name in self._frame else shape.numel() * self.dtype.itemsize
            for name, shape in self.shapes.items()
        }

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.shell.parameters())

    def state_dict(self) -> Mapping[str, Tensor]:
        """All weights; each is computed when it is asked for, and not kept."""
        return _Weights(self)

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """One weight of the merged model; UserError if it is not finite in the number format written."""
        value = self._merged(name)
        require_finite({name: value}, source=f"{self._base} with the trained weights, in {value.dtype}")
        return value

    def _merged(self, name: str) -> Tensor:
        if name in self._frame:
            return self._frame[name]
        value = self._trained.get(name)
        value = (self._layers.read(self._stored_names[name]) if value is None else value).to(self.dtype)
        return add_delta(value, *self._deltas[name]) if name in self._deltas else value

    @torch.no_grad()
    def apply(self, weights: Mapping[str, Tensor], *, alpha: float, source: str) -> None:
        """Puts trained weights, named as in training, over the base's; checks that they are all there and fit.

        Raises:
            ValueError: a weight is missing, left over or of another shape; adapters are of several ranks.
        """
        check_trained(self.config, weights, source=source)
        for name, value in weights.items():
            if found := LORA_NAME.fullmatch(name):
                lora_b = weights[name.replace(".lora_A.", ".lora_B.")]
                self._deltas[f"vlm.{found['layer']}.weight"] = (value, lora_b, alpha / len(value))
            elif ".lora_B." not in name:
                merged = merged_name(name)
                if merged in self._frame:
                    self._frame[merged].copy_(value)
                else:
                    self._trained[merged] = value


class _Weights(Mapping[str, Tensor]):
    """A state dict that holds nothing."""

    def __init__(self, model: MergedModel) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Tensor:
        return self._model.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.shapes)

    def __len__(self) -> int:
        return len(self._model.shapes)


def open_merge(
    version: str,
    weight: str | Path,
    *,
    scratch: Path,
    vision_tower: str | None = None,
    sam: str | None = None,
    dtype: torch.dtype | None = None,
    format: SequenceFormat | str | None = None,
    prompt: str | None = None,
    lora_alpha: float | None = None,
    tag: str | None = None,
) -> MergedModel:
    """The base `version` with the trained weights of `weight` merged into it.

    Args:
        scratch: an existing folder for a copy of the frame while this runs, some GB for a 7B model.
        lora_alpha: scale of the adapters; None: the run's, 16 where its settings are not beside the weights.
        tag: of a DeepSpeed checkpoint; the newest if not given.
        dtype: of the weights written; None: the run's precision, else as the base is stored.
        Others: as for `load_model`.

    Raises:
        FileNotFoundError, ValueError: something is absent or does not fit; the message names the flag.
    """
    folder = local_folder(version, flag="--version")
    kind = recognise(folder)
    if kind not in LAYOUTS:
        raise UserError(
            f"--version {version} is {kind}; pass it as --weight, and the model that it started from as --version"
        )
    logger.info("%s: %s", folder, kind)
    settings, weights = read_run_settings(weight), read_training_weights(weight, tag)
    dtype = dtype or settings.dtype
    format = format or released.training_format(weights, folder)
    stored = StoredWeights(folder)
    check_space(scratch, stored, sam, dtype)
    with tempfile.TemporaryDirectory(prefix=".frame-", dir=scratch) as place:
        copy = Path(place) / folder.name
        write_frame(folder, stored, copy)
        told: dict[str, Any] = {"vision_tower": vision_tower, "sam": sam, "format": format}
        try:
            with only_warnings("model"):  # what is loaded is not the model that the user gets
                frame, processor = load_model(copy, dtype=dtype, prompt=prompt, **told)
        except (UserError, FileNotFoundError) as error:
            raise type(error)(str(error).replace(str(copy), str(folder))) from error
    frame.config.num_all_classes = settings.num_all_classes or frame.config.num_all_classes
    if getattr(processor.tokenizer, "vocab_file", None):  # copied when the tokenizer is saved
        processor.tokenizer.vocab_file = str(folder / Path(processor.tokenizer.vocab_file).name)
    merged = MergedModel(folder, frame, stored, text_config_of(folder))
    if released.is_training_state(weights):
        weights = released.training_names(weights, frame)
    merged.apply(weights, alpha=alpha_of(weight, weights, lora_alpha), source=str(weight))
    return merged


@contextmanager
def only_warnings(name: str) -> Iterator[None]:
    """No information from the loggers below `name` inside the block."""
    parent = logging.getLogger(name)
    before = parent.level
    parent.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        parent.setLevel(before)


# -------------------------------------------------------------------------------- the run's weights


def empty_model(config: LasagnaConfig) -> LasagnaForConditionalGeneration:
    """Names and shapes only."""
    with torch.device("meta"):
        return LasagnaForConditionalGeneration(config)


def alpha_of(path: str | Path, weights: Mapping[str, Tensor], given: float | None) -> float:
    """LoRA's alpha: as given, else the run's, else training's default."""
    alpha = given or read_run_settings(path).run.get("lora_alpha")
    if alpha is None:
        alpha = DEFAULT_ALPHA
        if any(LORA_NAME.fullmatch(name) for name in weights):
            logger.warning(
                "%s does not come with the run's settings; LoRA alpha is taken to be %s", path, alpha
            )
    return float(alpha)


def check_trained(config: LasagnaConfig, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Raises a ValueError unless the weights are those of a model of this configuration in training."""
    model = empty_model(config)
    ranks = {found["layer"]: len(weights[name]) for name in weights if (found := LORA_NAME.fullmatch(name))}
    if len(set(ranks.values())) > 1:
        raise UserError(f"{source} has adapters of several ranks {sorted(set(ranks.values()))}")
    # Layers that the base does not have are left over, and stand in the table of what does not fit.
    known = [layer for layer in ranks if has_layer(model.vlm, layer)]
    if known:
        pattern = "|".join(re.escape(layer) for layer in known)
        model.vlm = add_lora(model.vlm, ranks[known[0]], 1, 0.0, pattern)
    # Into nothing: it compares names and shapes.
    copy_trained(model, dict(weights), source=source)


def merged_name(name: str) -> str:
    """The name, after merging, of a weight that is called `name` in training."""
    return name.replace("vlm.base_model.model.", "vlm.", 1).replace(".base_layer.", ".")


# ---------------------------------------------------------------------------------------------- writing


def save(
    merged: MergedModel,
    target: Path,
    *,
    card: str,
    layout: str = "lasagna",
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Writes the folder that `load_model` reads, reads it back, and gives it its name only then.

    Args:
        card: README.md of the folder.
        layout: "lasagna", or "lisa" for the layout of the released code.
        shard_size: bytes of one file, and so of what is in memory at a time.
        progress: called with the bytes of every weight that was written or read back.

    Raises:
        ValueError: the disk is full or fails; nothing is left behind.
    """
    sizes = merged.sizes
    require_space(target.parent, sum(sizes.values()))
    with finished_folder(target) as folder:
        if layout == "lisa":
            # It has what is used there: configuration, processor, tower and weights.
            model = cast(LasagnaForConditionalGeneration, merged)
            hashes = write_released(model, folder, shard_size=shard_size, progress=progress)
        else:
            merged.config.save_pretrained(folder)
            merged.processor.save_pretrained(folder)
            hashes = write_shards(folder, sizes, merged.read, shard_size=shard_size, progress=progress)
        (folder / "README.md").write_text(card, encoding="utf-8")
        verify(folder, hashes, progress=progress)
        settings = folder / SETTINGS_FOLDER if layout == "lisa" else folder
        if LasagnaProcessor.from_pretrained(settings).token_ids != merged.processor.token_ids:
            raise UserError(f"the tokenizer of {target} is not what was written; is the disk sound?")
