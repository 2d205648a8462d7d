"""A base model and trained weights, merged one weight at a time as each is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from model.checkpoints.checkpoint import TrainedWeights, WholeModel
from model.checkpoints.finite import require_finite
from model.checkpoints.frame import full_config, layer_names, text_config_of
from model.checkpoints.trained import LORA_NAME, copy_trained, lora_of, named_as_ours
from model.config import LasagnaConfig
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_delta, embedding_and_head
from model.strict_loading import check_fit


class MergedModel:
    """The merged model as far as writing it needs: weights are computed when they are read.

    It has the parts of a model that `model.checkpoints.layouts.write_released` asks for.
    """

    def __init__(self, base: WholeModel, frame: LasagnaForConditionalGeneration) -> None:
        layers = base.stored
        self.processor, self.dtype = frame.processor, frame.dtype
        self.vlm = self.base_vlm = frame.base_vlm  # without its layers
        self.config = full_config(frame, text_config_of(base.path))
        self.shell = empty_model(self.config)
        self._frame = frame.state_dict()
        # Rows of new tokens that trained alone, and the matrices that they belong to.
        name_of = {id(weight): name for name, weight in frame.named_parameters()}
        self._rows = {
            f"token_rows.{part}": name_of[id(matrix)]
            for part, matrix in zip(("embedding", "head"), embedding_and_head(frame), strict=True)
            if matrix is not None
        }
        self._base, self._layers, self._stored_names = base.path, layers, layer_names(layers)
        self._deltas: dict[str, tuple[Tensor, Tensor, float]] = {}  # adapters A, B and their scale
        self._trained: dict[str, Tensor] = {}  # layers' weights that the run stored whole
        expected = {name: value for name, value in self.shell.state_dict().items() if name not in self._frame}
        stored = {
            name: torch.empty(layers.shapes[key], device="meta") for name, key in self._stored_names.items()
        }
        check_fit(expected, stored, source=str(base.path))
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
    def apply(
        self, trained: TrainedWeights, frame: LasagnaForConditionalGeneration, *, lora_alpha: float | None
    ) -> None:
        """Applies trained weights to the base's; checks names and shapes.

        Args:
            frame: the one that the model was made of.
            lora_alpha: see `lora_of`.

        Raises:
            ValueError: a weight is missing, left over or of another shape; adapters are of several ranks.
        """
        weights = named_as_ours(trained, frame)
        lora = lora_of(weights, trained, lora_alpha)
        new_ids = frame.processor.new_token_ids
        copy_trained(empty_model(self.config), weights, lora, trained, new_ids)
        for name, value in weights.items():
            if lora is not None and (found := LORA_NAME.fullmatch(name)):
                lora_b = weights[name.replace(".lora_A.", ".lora_B.")]
                self._deltas[f"vlm.{found['layer']}.weight"] = (value, lora_b, lora.scale)
            elif name in self._rows:
                self._frame[self._rows[name]][list(new_ids)] = value.to(self.dtype)
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


def empty_model(config: LasagnaConfig) -> LasagnaForConditionalGeneration:
    """Names and shapes only."""
    with torch.device("meta"):
        return LasagnaForConditionalGeneration(config)


def merged_name(name: str) -> str:
    """The name, after merging, of a weight that is called `name` in training."""
    return name.replace("vlm.base_model.model.", "vlm.", 1).replace(".base_layer.", ".")
