"""Reads a save of one number of processes for another, and weights without their optimizer.

DeepSpeed takes a save only with as many processes as wrote it. ZeRO cuts what the optimizer holds - float32 weights,
the averages of AdamW - into one part a process. The parts are put together again and cut for the processes that are
there, in memory, when DeepSpeed asks for the file of this process:

    stages 1, 2   a parameter group is one vector, cut into equal parts     3 processes [aa|bb|bc] -> 2 [aab|bbc]
    stage 3       every parameter is cut by itself, the last part padded    3 [a|a|a] [b|b|-] -> 2 [aa|a-] [b|b]

Source of the layout: deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, 0.19.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.layouts.deepspeed import in_rank_order
from model.errors import UserError
from utils.common.distributed import process_rank, world_size

Load = Callable[..., Any]
WEIGHTS, STATE = "single_partition_of_fp32_groups", "base_optimizer_state"  # stages 1 and 2
WEIGHTS_3, STATE_3 = "fp32_flat_groups", "optimizer_state_dict"  # stage 3


def read_for_these_processes(engine: Any, save: Path, load: Load, *, fresh: bool) -> None:
    """Let the engine's next `load_checkpoint` read a save of any number of processes; the engine is DeepSpeed's.

    Args:
        load: reads one file.
        fresh: without what the optimizer has gathered.
    """
    reader = _Reader(engine, save, load, fresh=fresh)
    engine.checkpoint_engine.load = reader.load
    engine._get_all_ckpt_names = reader.names  # ZeRO-3 looks for a file of its own process there


class _Reader:
    """Stands in for DeepSpeed's reader of one save."""

    def __init__(self, engine: Any, save: Path, load: Load, *, fresh: bool) -> None:
        self._engine, self._save, self._load, self._fresh = engine, save, load, fresh

    def names(self, *_: object) -> list[str]:
        """The files of the weights that DeepSpeed reads: the first process's, as it holds nothing else of its own."""
        return [str(in_rank_order(self._save.glob("*_model_states.pt"))[0])]

    def load(self, path: str, map_location: Any = None, **options: Any) -> Any:
        """What this process needs of the save, in place of the file at `path`."""
        if Path(path).name.endswith("_optim_states.pt"):
            return {"optimizer_state_dict": self._of_optimizer()}
        state = self._load(path, map_location=map_location, **options)
        state["dp_world_size"] = world_size()
        if self._fresh and state.get("optimizer"):  # without ZeRO it lies beside the weights, whole
            holder = state["optimizer"]
            inner = holder.get("optimizer_state_dict", holder)  # within the one that keeps float32 weights
            inner.update(self._emptied(inner))
        return state

    def _of_optimizer(self) -> dict[str, Any]:
        paths = in_rank_order(self._save.glob("*_optim_states.pt"))
        parts = [
            self._load(str(path), map_location="cpu", mmap=True)["optimizer_state_dict"] for path in paths
        ]
        state = self._of_stage_3(parts) if WEIGHTS_3 in parts[0] else self._of_stage_2(parts)
        return {**parts[0], **state}

    def _of_stage_2(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stages 1 and 2: what they store of the weights is without padding, what they store beside them is not."""
        optimizer = self._engine.optimizer
        lengths = [[len(weights) for weights in part[WEIGHTS]] for part in parts]
        paddings = [part["group_paddings"] for part in parts]

        def cut(tensors: Sequence[Tensor], group: int) -> Tensor:
            size = optimizer.single_partition_of_fp32_groups[group].numel()
            flat = torch.cat([tensor[: lengths[rank][group]] for rank, tensor in enumerate(tensors)])
            return _padded(flat[process_rank() * size : (process_rank() + 1) * size], size)

        sizes = [sum(rank[group] for rank in lengths) for group in range(len(lengths[0]))]
        wanted = [sum(parameter.numel() for parameter in group) for group in optimizer.bit16_groups]
        self._check_sizes(sizes, wanted)
        whole = [
            [length + padding for length, padding in zip(*rank, strict=True)]
            for rank in zip(lengths, paddings, strict=True)
        ]
        states = [part[STATE] for part in parts]
        return {
            WEIGHTS: [cut([part[WEIGHTS][group] for part in parts], group) for group in range(len(sizes))],
            "group_paddings": optimizer.groups_padding,
            "partition_count": optimizer.partition_count,
            STATE: self._emptied(states[0]) if self._fresh else _recut(states, whole, cut),
        }

    def _of_stage_3(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stage 3: all that it stores is padded, parameter by parameter."""
        optimizer = self._engine.optimizer
        numbers = [[parameter.ds_numel for parameter in group] for group in optimizer.fp16_groups]
        wanted = [sum(math.ceil(number / len(parts)) for number in group) for group in numbers]
        self._check_sizes([flat.numel() for flat in parts[0][WEIGHTS_3]], wanted)

        def cut(tensors: Sequence[Tensor], group: int) -> Tensor:
            pieces, offset = [], 0
            for number in numbers[group]:
                before, size = math.ceil(number / len(parts)), math.ceil(number / world_size())
                whole = torch.cat([tensor[offset : offset + before] for tensor in tensors])[:number]
                pieces.append(_padded(whole[process_rank() * size : (process_rank() + 1) * size], size))
                offset += before
            return torch.cat(pieces)

        states = [part[STATE_3] for part in parts]
        return {
            WEIGHTS_3: [
                cut([part[WEIGHTS_3][group] for part in parts], group) for group in range(len(wanted))
            ],
            "partition_count": optimizer.partition_count,
            STATE_3: self._emptied(states[0]) if self._fresh else _recut(states, [wanted] * len(parts), cut),
        }

    def _emptied(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of an optimizer that has not done a step, with the settings of the one that is there."""
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        groups = zip(inner.param_groups, state["param_groups"], strict=True)
        return {"state": {}, "param_groups": [{**now, "params": saved["params"]} for now, saved in groups]}

    def _check_sizes(self, stored: Sequence[int], wanted: Sequence[int]) -> None:
        if list(stored) != list(wanted):
            raise UserError(
                f"{self._save}: its optimizer holds {list(stored)} values a group, this run needs {list(wanted)}; it "
                "cannot be divided among another number of processes: start as many as wrote it"
            )


def _recut(
    states: Sequence[Mapping[str, Any]],
    lengths: Sequence[Sequence[int]],
    cut: Callable[[Sequence[Tensor], int], Tensor],
) -> dict[str, Any]:
    """The state of AdamW for this process.

    Args:
        states: of each process that wrote the save.
        lengths: the stored values of each process's groups; what has another shape is the same in all of them.
    """
    keys = [key for group in states[0]["param_groups"] for key in group["params"]]
    recut: dict[int, dict[str, Any]] = {}
    for group, key in enumerate(keys):
        if key not in states[0]["state"]:
            continue
        entries = [state["state"][key] for state in states]
        recut[key] = {
            name: cut([entry[name] for entry in entries], group)
            if isinstance(value, Tensor) and value.shape == (lengths[0][group],)
            else value
            for name, value in entries[0].items()
        }
    return {"state": recut, "param_groups": states[0]["param_groups"]}


def _padded(part: Tensor, size: int) -> Tensor:
    """(size,): a copy of the part with zeros behind it."""
    padded = part.new_zeros(size)
    padded[: len(part)] = part
    return padded
