"""GPU memory that a training configuration takes, for ZeRO 0 to 3.

    python -m utils.costs.memory --config configs/lasagna_7b.yaml --gpus 8
    python -m utils.costs.memory --config configs/lasagna_7b.yaml --gpus 4 \\
      --batch_size 1 --masks 40

From the configuration alone: the model is built of tensors that have a shape
and no memory. Where base model, CLIP or SAM are not there, their published
sizes are taken (utils/costs/model_sizes.py). Formulas and their sources:
docs/checkpoints.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import LasagnaConfig
from model.decoders.concept import CONCEPTS_PER_CALL, ConceptSegmenter
from model.decoders.transform import ImageTransform
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import adapt
from model.losses import LOGITS_PER_CHUNK, PIXELS_PER_CHUNK, mask_losses
from model.text.tokens import wanted_tokens
from utils.common.checks import require_positive
from utils.common.commands import command
from utils.common.distributed import dtype_of
from utils.common.settings import parse_config, setting
from utils.config.training import TrainConfig
from utils.costs.model_sizes import model_config
from utils.costs.vision_flops import IMAGE_SIZE, num_image_tokens

STAGES = (0, 1, 2, 3)
CARDS = (24, 40, 80)  # GB = 10^9 bytes; what a card of 24 GiB has beyond that goes to the CUDA context

# DeepSpeed's: reduce_bucket_size of utils/training/deepspeed_config.py on a GPU and on a CPU, and the default of
# stage3_max_live_parameters; all count parameters.
REDUCE_BUCKET, REDUCE_BUCKET_OF_CPU = 500_000_000, 50_000_000
MAX_LIVE = 1_000_000_000
# An image of ADE20K shows 10.5 classes in the mean (Zhou et al., 2017); few show more than this.
MASKS_PER_IMAGE = 16
# One for all estimates: SAM 3's detector keeps a tensor of its last call.
FAKE = FakeTensorMode()
COSTS = "costs"  # the group of the settings of this folder's commands


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of the model, adapters included."""

    total: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on each GPU while training."""

    stage: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations

    @property
    def card(self) -> int | None:
        """The smallest of CARDS that holds it, None where none does."""
        return next((card for card in CARDS if self.total <= card * 10**9), None)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(TrainConfig):
    """The settings of training, and those of the estimate."""

    gpus: int = setting(8, "processes, one per GPU", group=COSTS)
    masks: int = setting(MASKS_PER_IMAGE, "number of [SEG] of one image", group=COSTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "gpus", "masks")


@command("utils.costs.memory")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(MemoryConfig, argv, about=__doc__)
    shape = model_config(config)
    model = build(config, shape)
    count, activations = count_parameters(model), activation_bytes(model, config, config.masks)
    rows = [estimate(count, stage, config.gpus, config.precision, activations) for stage in STAGES]
    show(rows, count, shape, config, config.gpus, config.masks)
    return 0


def build(config: TrainConfig, shape: LasagnaConfig) -> LasagnaForConditionalGeneration:
    """The model as train_ds.py trains it, on the meta device: shapes and no memory."""
    with torch.device("meta"), default_dtype(dtype_of(config.precision)):
        model = LasagnaForConditionalGeneration(shape)
    num_new = len(wanted_tokens(config.sequence_format, for_llava=False))
    adapt(model, new_ids=range(num_new), **config.adapters)
    return model.train()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def count_parameters(model: nn.Module) -> Count:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Count(
        total=sum(size for size, _ in sizes), trainable=sum(size for size, trains in sizes if trains)
    )


def estimate(
    count: Count, stage: int, num_gpus: int, precision: str, activations: int, *, on_gpu: bool = True
) -> Estimate:
    """Bytes of one process.

    Mixed-precision Adam keeps for every trainable parameter a float32 copy and two float32 moments, 12 bytes; the
    stages divide optimizer (1), gradients too (2), weights too (3): Rajbhandari et al., "ZeRO: Memory Optimizations
    Toward Training Trillion Parameter Models", 2020, section 3 and figure 1. Frozen parameters have weights only.
    Buffers, as DeepSpeed 0.19.8 allocates them: two reduce buckets in stages 1 and 2, which overlap communication
    with computation, on a CPU one; in stage 3 one bucket and the weights that are gathered at a time. Before a step,
    gradients of this process's part of the optimizer become float32.
    """
    width = dtype_of(precision).itemsize
    part = -(-count.trainable // num_gpus)  # rounded up
    own_part = count.trainable if stage == 0 else part
    # In float32 without ZeRO, Adam works on the weights themselves.
    copies = 2 if width == 4 and stage == 0 else 3
    float32_gradients = 0 if width == 4 else 4 * own_part
    bucket = REDUCE_BUCKET if on_gpu else REDUCE_BUCKET_OF_CPU
    overlapping = (2 if on_gpu else 1) * bucket
    buffers = {0: 0, 1: overlapping, 2: overlapping, 3: bucket + min(MAX_LIVE, count.total)}
    return Estimate(
        stage=stage,
        weights=width * (count.total if stage < 3 else -(-count.total // num_gpus)),
        gradients=width * (count.trainable if stage < 2 else part) + float32_gradients,
        optimizer=4 * copies * own_part,
        buffers=width * buffers[stage],
        activations=activations,
    )


# ---------------------------------------------------------------------------------------- activations


def activation_bytes(model: LasagnaForConditionalGeneration, config: TrainConfig, num_masks: int) -> int:
    """What autograd keeps of one micro-batch until backward; measured on the model's own layers.

    Each image has one row with its features and --model_max_length tokens, and `num_masks` masks. With gradient
    checkpointing every layer of the language model keeps its input, and one layer at a time keeps all it needs.
    The encoders run without gradients; their temporary memory is free again before the language model starts.
    """
    text = model.config.vlm_config.text_config
    num_image = num_image_tokens(model.config.vlm_config, config)
    num_tokens = config.batch_size * (num_image + config.model_max_length)
    state = num_tokens * text.hidden_size * dtype_of(config.precision).itemsize
    layer = layer_bytes(model, num_tokens)
    layers = text.num_hidden_layers * (state if config.gradient_checkpointing else layer)
    if config.gradient_checkpointing:
        layers += layer
    # Of one piece of the text loss: logits in the model's dtype and their gradient; in float32 logits,
    # log-probabilities and gradient. Of one piece of the mask losses: logits, targets and two temporary arrays.
    num_logits = min(num_tokens * text.vocab_size, LOGITS_PER_CHUNK)
    logits = num_logits * (2 * dtype_of(config.precision).itemsize + 3 * 4)
    pixels = max(PIXELS_PER_CHUNK, math.prod(IMAGE_SIZE)) * 4 * 4
    num_masks *= config.batch_size
    return (
        layers + max(logits, pixels) + num_masks * mask_bytes(model) + concept_bytes(model, config, num_masks)
    )


def layer_bytes(model: LasagnaForConditionalGeneration, num_tokens: int) -> int:
    """What one layer of the language model keeps for `num_tokens` tokens, its input not counted."""
    text = model.config.vlm_config.text_config
    layers = model.backbone.language_model.layers
    layer = next(layer for layer in layers if hasattr(layer, "self_attn"))  # Qwen3.5 has recurrent ones too
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    with FAKE:
        dtype = give_values(layer)
        states = torch.empty(1, num_tokens, text.hidden_size, dtype=dtype, requires_grad=True)
        angles = torch.empty(1, num_tokens, head_dim, dtype=dtype)
        kept = saved_bytes(layer, lambda: layer(states, position_embeddings=(angles, angles)))
        return kept - states.nbytes


def mask_bytes(model: LasagnaForConditionalGeneration) -> int:
    """What one [SEG] keeps: projection, mask decoder, gradients of the losses for an image of 480 x 640."""
    settings = model.config.sam_settings
    resized = ImageTransform(settings.image_size, settings.resize).size(*IMAGE_SIZE)
    parts = nn.ModuleList((model.seg_projector, model.sam))
    with FAKE:
        dtype = give_values(parts)
        state = torch.empty(1, model.sam.states_per_prompt, model.seg_projector[0].in_features, dtype=dtype)
        levels = tuple(torch.empty(1, *shape, dtype=dtype) for shape in settings.embedding_shapes)

        def draw() -> Tensor:
            low_res = model.sam.decode(model.seg_projector(state), levels, [0])
            resize = model.sam.mask_resize(resized, IMAGE_SIZE, low_res.device)
            target = torch.zeros(1, *IMAGE_SIZE, dtype=torch.uint8)
            return mask_losses([low_res], [resize], [target])[0].sum()

        return saved_bytes(parts, draw) - sum(level.nbytes for level in levels)


def concept_bytes(model: LasagnaForConditionalGeneration, config: TrainConfig, num_masks: int) -> int:
    """What a concept head takes besides: the neck's levels of every image, the classes recomputed at a time."""
    sam = model.sam
    if not isinstance(sam, ConceptSegmenter):
        return 0
    sam.recomputes = False
    try:
        of_class = mask_bytes(model)  # with the levels of one image
    finally:
        sam.recomputes = True
    dim, side, width = (
        sam.settings.prompt_embed_dim,
        sam.settings.grid_size[0],
        dtype_of(config.precision).itemsize,
    )
    levels = width * dim * side**2 * (16 + 4 + 1)
    return config.batch_size * levels + min(num_masks, CONCEPTS_PER_CALL) * of_class


def give_values(module: nn.Module) -> torch.dtype:
    """Turn meta tensors into fake CPU tensors, which take the CPU's code paths, such as fused attention."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                part._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    return next(module.parameters()).dtype


def saved_bytes(module: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of what `run` keeps for backward, each storage once, the module's own weights not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no storage is freed and its address used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# --------------------------------------------------------------------------------------------- output


def show(
    rows: Sequence[Estimate],
    count: Count,
    shape: LasagnaConfig,
    config: TrainConfig,
    num_gpus: int,
    num_masks: int,
    console: Console | None = None,
) -> None:
    """The table, in 80 columns."""
    console = console or Console()
    width = min(console.width, 80)
    num_tokens = num_image_tokens(shape.vlm_config, config) + config.model_max_length
    share = count.trainable / count.total
    console.print(
        f"{count.total / 1e9:.2f} billion parameters, {count.trainable / 1e6:.0f} million train ({share:.1%}); "
        f"{num_gpus} GPUs, {config.precision}, {config.batch_size} images each with {num_tokens} tokens and "
        f"{num_masks} masks, gradient checkpointing {'on' if config.gradient_checkpointing else 'off'}. "
        "GB on each GPU:",
        width=width,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("weights", "gradients", "optimizer", "buffers", "activations", "total")
    for heading in ("ZeRO", *names, "fits on"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        sizes = (f"{getattr(row, name) / 1e9:.1f}" for name in names)
        stage = f"{row.stage}{' *' if row.stage == config.zero_stage else ''}"
        table.add_row(stage, *sizes, f"{row.card} GB" if row.card else f"> {CARDS[-1]} GB")
    console.print(table, width=width)
    console.print("* the configuration's stage; an estimate: leave a tenth of the card free", width=width)


if __name__ == "__main__":
    sys.exit(main())
