"""What the three pretraining stages share: scenes as arrays, a learning-rate schedule, and a resumable loop."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from utils.toy.scene import CLASSES, PALETTE, Scene, draw_scene

logger = logging.getLogger(__name__)

# Seeds of the pretraining scenes; the worlds of utils.toy.world use other seeds.
PRETRAIN_SEED = 77_000_001
HELD_OUT_SEED = 77_000_002
COLOURS = tuple(PALETTE)


@dataclass(frozen=True)
class Square:
    """A scene padded at the right and the bottom, or around, to a square and resized to `side` pixels."""

    image: np.ndarray  # (side, side, 3) uint8
    label: np.ndarray  # (side, side) uint8, len(CLASSES) where padded
    thing: np.ndarray  # (side, side) uint8, 0 where there is none, k + 1 for things[k]
    scene: Scene
    offset: tuple[float, float]  # (x, y) of the scene's corner, in pixels of the square
    scale: float


def thing_map(scene: Scene) -> np.ndarray:
    """(height, width) uint8: 0 where there is no thing, k + 1 for things[k]."""
    owners = np.zeros(scene.label.shape, np.uint8)
    for number, thing in enumerate(scene.things):
        owners[thing.mask] = number + 1
    return owners


def colours_of_things(scene: Scene) -> np.ndarray:
    """(256,) uint8, for each value of `thing_map` the index of its colour, len(COLOURS) where it has none."""
    colours = np.full(256, len(COLOURS), np.uint8)
    for number, thing in enumerate(scene.things):
        if thing.colour in COLOURS:
            colours[number + 1] = COLOURS.index(thing.colour)
    return colours


def batches(seed: int, batch_size: int, start: int = 0, stride: int = 1) -> Iterator[list[Scene]]:
    """Endless batches of scenes, each `stride`-th of them; batch k is a pure function of (seed, k)."""
    for step in count(start, stride):
        yield [draw_scene(seed, step * batch_size + k) for k in range(batch_size)]


def cosine_factor(step: int, num_steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Student(nn.Module):
    """A module trained on scenes."""

    @property
    def device_type(self) -> str:
        """ "cpu" or "cuda", for autocast."""
        return next(self.parameters()).device.type

    def prepare(self, scenes: list[Scene]) -> Any:
        """The input of `losses`, computed from scenes in a worker process: numpy arrays and CPU tensors."""
        raise NotImplementedError

    def losses(self, prepared: Any) -> dict[str, Tensor]:
        """ "loss", the scalar to minimise, and others to log; new tensors are on the student's device by default."""
        raise NotImplementedError


class Prepared(IterableDataset):
    """Endless prepared batches of a student, from step `start` on."""

    def __init__(self, student: Student, batch_size: int, start: int) -> None:
        self.student, self.batch_size, self.start = student, batch_size, start

    def __iter__(self) -> Iterator[Any]:
        """Those of this worker; the loader takes one of each worker in turn, so that their order is the same."""
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for scenes in batches(PRETRAIN_SEED, self.batch_size, self.start + first, stride):
            yield self.student.prepare(scenes)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Where the stages are trained."""

    folder: Path  # of the states that continue a stage
    device: str = "cpu"
    workers: int = 1  # processes that draw scenes


def train(
    module: Student,
    trainer: Trainer,
    *,
    name: str,
    num_steps: int,
    batch_size: int,
    lr: float,
    num_held_out: int,
    weight_decay: float = 0.02,
    evaluate_every: int = 250,
    when_evaluated: Callable[[], None] = lambda: None,
) -> None:
    """AdamW on `module.losses`, resumable: the state is saved with each evaluation and read on start.

    The module ends on the CPU. Weight decay applies to all but embeddings, norms and biases.
    """
    module.to(trainer.device)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    kept = [p for name, p in named if p.ndim < 2 or "embed" in name]
    decayed = [p for name, p in named if p.ndim >= 2 and "embed" not in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    state_file = trainer.folder / f"{name}.state.pt"
    step, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=trainer.device)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
        logger.info("%s: continues at step %d", name, step)

    def losses_of(prepared: Any) -> dict[str, Tensor]:
        with torch.device(trainer.device):
            return module.losses(to_device(prepared, trainer.device))

    held_out = module.prepare(next(batches(HELD_OUT_SEED, num_held_out)))
    # Workers draw scenes while the model trains; `prepare` does not read its weights.
    drawn = Prepared(module, batch_size, step)
    source = iter(DataLoader(drawn, batch_size=None, num_workers=trainer.workers))
    bar = tqdm(total=num_steps, initial=step, desc=name, mininterval=10)
    begun = time.monotonic()
    while step < num_steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine_factor(step, num_steps)
        losses = losses_of(next(source))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        bar.update()
        if step % evaluate_every == 0 or step == num_steps:
            with torch.no_grad():
                held_out_losses = losses_of(held_out)
            scores = {key: float(value.detach()) for key, value in losses.items()}
            scores |= {f"held-out {key}": float(value) for key, value in held_out_losses.items()}
            when_evaluated()
            text = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
            elapsed = seconds + time.monotonic() - begun
            tqdm.write(f"{name} step {step} ({elapsed / 60:.1f} min): {text}")
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                     "seconds": elapsed}  # fmt: skip
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    bar.close()
    module.cpu()


def to_device(prepared: Any, device: str) -> Any:
    """What `prepare` returned, with its tensors on a device."""
    if isinstance(prepared, Tensor):
        return prepared.to(device, non_blocking=True)
    if isinstance(prepared, dict):
        return {name: to_device(value, device) for name, value in prepared.items()}
    if is_dataclass(prepared) and not isinstance(prepared, type):
        return replace(prepared, **to_device(vars(prepared), device))
    if isinstance(prepared, (list, tuple)):
        return type(prepared)(to_device(value, device) for value in prepared)
    return prepared


def patch_histogram(values: np.ndarray, patch: int, num_values: int) -> np.ndarray:
    """The fraction of each patch that has each value: (side, side) integers -> (patches, num_values) float32."""
    side = values.shape[0] // patch
    cells = rearrange(values, "(row p) (column q) -> (row column) (p q)", p=patch, q=patch)
    index = cells.astype(np.int64) + num_values * np.arange(side * side)[:, None]
    counts = np.bincount(index.ravel(), minlength=side * side * num_values).reshape(side * side, num_values)
    return (counts / cells.shape[1]).astype(np.float32)


NUM_LABELS = len(CLASSES) + 1  # the classes, and padding
