"""The 7B model that learns, its micro-batches, and what makes their steps faster: switches of training and engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.scenes import make_scene
from model.inputs import Levels, ModelInputs
from model.lora import add_lora, mark_trainable
from utils.costs.cost_model import CostModel, Work
from utils.costs.flop_formulas import total
from utils.training.compile import compile_blocks, undo_compilation
from utils.training.cuda_graphs import forget_recordings, record_parts
from utils.training.recordings import Run

NUM_IMAGES, NUM_CONVERSATIONS = 2, 5
BIG_BATCHES = (4, 8)  # images, to see what a micro-batch of 2 leaves unused
MULTIPLE = 16  # tokens: rows of recordings are padded to a multiple of it


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What makes a step faster."""

    checkpointing: bool = False
    compiled: bool = False
    recorded: bool = False  # --cuda_graphs

    def __str__(self) -> str:
        kernels = "compiled" if self.compiled else "eager"
        graphs = ", CUDA graphs" if self.recorded else ""
        return f"{kernels}{graphs}, {'' if self.checkpointing else 'no '}gradient checkpointing"


AS_RECIPE, COMPILED = Switches(checkpointing=True), Switches(compiled=True)
FASTEST = Switches(compiled=True, recorded=True)


class RunAgain:
    """Stands for CUDA graphs on a CPU: does the work once more where a GPU would launch a recording of it."""

    def warm_up(self, run: Run) -> None:
        """See `Recorder`."""
        run()

    def record(self, run: Run) -> Run:
        """See `Recorder`."""
        run()
        return run


class TrainingStep:
    """The 7B model with adapters, its batches, and what they cost."""

    def __init__(self, machine: Machine, *, dropout: float = 0.05) -> None:
        model = machine.model
        model.requires_grad_(False)
        if model.base_vlm is model.vlm:
            model.vlm = add_lora(model.vlm, dropout=dropout)
        mark_trainable(model)
        self.machine, self.model = machine, model.train()
        self.costs = CostModel(shape=model.config, on_gpu=machine.on_gpu)

    def batch(
        self, images: int, conversations: int, *, packed: bool = True, multiple: int = 1, seed: int = 0
    ) -> ModelInputs:
        """What the model reads, on the device."""
        scene = make_scene(self.model.processor, images, conversations, seed=seed)
        inputs = self.model.processor.collate(
            scene.images,
            scene.conversations,
            scene.owners,
            masks=scene.masks,
            pack_rows=packed,
            pad_to_multiple_of=multiple,
        )
        return inputs.to(self.machine.device)

    def switch(self, switches: Switches) -> None:
        """Has the model run so; what is compiled stays compiled where it is wanted next, too.

        Tiny, recordings are of what is not compiled: compilation would take longer than all the rest.
        """
        if self.machine.tiny and switches.recorded:
            switches = replace(switches, compiled=False)
        self.model.set_gradient_checkpointing(switches.checkpointing)
        forget_recordings(self.model)
        is_compiled = self.model.sam.mask_decoder._compiled_call_impl is not None
        if is_compiled and not switches.compiled:
            undo_compilation(self.model)
            torch._dynamo.reset()  # guards of other settings would be tried before each call
        if switches.compiled and not is_compiled:
            compile_blocks(self.model, "eager" if self.machine.tiny else "inductor")
        self.machine.free()  # the memory of recordings
        if switches.recorded:
            record_parts(self.model, None if self.machine.on_gpu else RunAgain)

    def learn(self, batch: ModelInputs, embeddings: Levels | None = None) -> None:
        """Forward and backward; gradients are dropped."""
        if embeddings is not None:
            batch = replace(batch, sam_images=None, sam_embeddings=embeddings)
        self.model(**batch.fields()).loss.backward()
        self.model.zero_grad(set_to_none=True)

    def flops(self, batch: ModelInputs, *, encoded: bool = False) -> float:
        """Model FLOPs of a micro-batch; `encoded`: SAM's embeddings are there."""
        parts = self.costs.training(Work.of_batch(batch, self.model.config.image_token_id))
        return total(part for name, part in parts.items() if not (encoded and name == "SAM encoder")).model
