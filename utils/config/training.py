"""Settings of training: a field is a flag is a YAML key, declared once with type, default, meaning and group.

    config = parse_config(TrainConfig)        # defaults < --config FILE.yaml < flags

A boolean that is on by default has a switch --no_NAME. Those of the data: utils/config/data.py; of the other
scripts: utils/config/inference.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.choices import ASPECT_RATIOS, HEADS, check_spatial
from model.errors import UserError
from utils.common.checks import (
    MAX_PARALLEL,
    MAX_SECONDS,
    require_at_most,
    require_fraction,
    require_not_negative,
    require_positive,
)
from utils.common.settings import setting
from utils.config.data import (
    LOADING,
    MACHINE,
    MODEL,
    OUTPUT,
    RECIPE,
    VALIDATION,
    DataConfig,
    encoder_precision_setting,
)
from utils.config.output import check_run_name, trackers_named
from utils.config.speed import check_speed

PRECISIONS = ("fp32", "bf16", "fp16")
MAX_RANK = 65_536  # of adapters: no layer is wider
MAX_MULTIPLE = 4096  # tokens: longer rows would be mostly padding
MAX_STEP_SIZE = 1e30  # AdamW's first step is ten times that, and float32 ends at 3e38
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Settings of train_ds.py. The defaults are the recipe of the paper for one 7B model."""

    vision_tower: str = setting(
        "", "CLIP folder, for a LLaVA without a vision tower inside", group=MODEL, path=True
    )
    vision_pretrained: str = setting(
        "", "SAM, SAM 2 or SAM 3: its file, or a Hugging Face folder", group=MODEL, path=True
    )
    mask_head: str = setting(
        "",
        "what draws masks: sam, one for each [SEG], or concept, SAM 3's detector, which also finds instances",
        ("", *HEADS),
        group=MODEL,
        unset="what --vision_pretrained or --version holds; of a SAM 3 with both, sam",
    )
    min_image_tokens: int | None = setting(
        None,
        "minimum number of tokens of an image, where the base has it as a setting (Qwen)",
        group=MODEL,
        unset="the base's own",
    )
    max_image_tokens: int | None = setting(
        None,
        "maximum number of tokens of an image, where the base has it as a setting",
        group=MODEL,
        unset="the base's own",
    )
    image_aspect_ratio: str = setting(
        "",
        "how an image becomes a square for CLIP: its middle is cut out (square), it is padded, or stretched",
        ("", *ASPECT_RATIOS),
        group=MODEL,
        unset="as the base was trained",
    )
    spatial_prompt: bool = setting(
        False,
        "similarity of a [SEG] with the image tokens as a mask prompt; off in the paper",
        group=MODEL,
    )
    num_latent_prompts: int = setting(
        0, "further prompt tokens of a [SEG], with --spatial_prompt", group=MODEL
    )
    attn_implementation: str = setting("auto", "attention of the language model", ATTENTION, group=MODEL)

    pack: bool = setting(
        True,
        "pack the conversations of one image into one row that shares its prefix: same losses, fewer tokens",
        group=LOADING,
    )
    pad_to_multiple_of: int = setting(
        1,
        "pad rows of tokens to a multiple of this, so that batches have fewer shapes: same losses",
        group=LOADING,
    )
    fast_resize: bool = setting(False, "resize images faster, within two grey levels", group=LOADING)
    workers: int = setting(4, "data loading processes of each training process", group=LOADING)
    sam_cache: str = setting(
        "",
        "folder that caches SAM's image embeddings, so that each image is encoded once: 2.1 MB each (SAM 2: 8.4 MB)",
        group=LOADING,
        unset="no cache",
        path=True,
    )
    sam_cache_gb: float | None = setting(
        None,
        "cache size limit in GB (10^9 bytes); when full, nothing is written",
        group=LOADING,
        unset="no limit",
    )

    epochs: int = setting(36, "number of epochs", group=RECIPE)
    steps_per_epoch: int = setting(500, "optimizer steps of an epoch", group=RECIPE)
    batch_size: int = setting(2, "images of one micro-batch, per process", group=RECIPE)
    grad_accumulation_steps: int = setting(10, "micro-batches of one optimizer step", group=RECIPE)
    lr: float = setting(3e-4, "peak learning rate, reached after warm-up", group=RECIPE)
    warmup_steps: int = setting(100, "steps of linear warm-up; a linear decay to zero follows", group=RECIPE)
    beta1: float = setting(0.9, "AdamW's first beta", group=RECIPE)
    beta2: float = setting(0.95, "AdamW's second beta", group=RECIPE)
    weight_decay: float = setting(0.0, "AdamW's weight decay", group=RECIPE)
    grad_clip: float = setting(1.0, "maximum gradient norm", group=RECIPE)
    ce_loss_weight: float = setting(1.0, "weight of the token cross-entropy", group=RECIPE)
    bce_loss_weight: float = setting(2.0, "weight of the masks' binary cross-entropy", group=RECIPE)
    dice_loss_weight: float = setting(0.5, "weight of the masks' dice loss", group=RECIPE)
    map_bce_loss_weight: float = setting(
        1.0, "weight of the spatial prompt's binary cross-entropy", group=RECIPE
    )
    map_dice_loss_weight: float = setting(0.25, "weight of the spatial prompt's dice loss", group=RECIPE)
    presence_loss_weight: float = setting(
        1.0, "weight of the concept head's binary cross-entropy of presence", group=RECIPE
    )
    trained_embeddings: str = setting(
        "auto",
        "which rows of embedding and lm_head train: all, new ([SEG], [NEG] and other added tokens), or auto (all for "
        "a LLaVA, new for other bases)",
        ("auto", "all", "new"),
        group=RECIPE,
    )
    lora_r: int = setting(8, "rank of the adapters; 0 trains without them", group=RECIPE)
    lora_alpha: float = setting(16.0, "LoRA alpha: adapters are scaled by alpha / rank", group=RECIPE)
    lora_dropout: float = setting(0.05, "dropout before the adapters", group=RECIPE)
    lora_target_modules: str = setting(
        "q_proj,v_proj", "layers of the language model that get adapters", group=RECIPE
    )

    precision: str = setting("bf16", "dtype of weights and activations", PRECISIONS, group=MACHINE)
    encoder_precision: str = encoder_precision_setting(MACHINE)
    zero_stage: int = setting(
        2, "ZeRO stage: what DeepSpeed partitions over processes", (0, 1, 2, 3), group=MACHINE
    )
    gradient_checkpointing: bool = setting(
        True,
        "recompute the language model's activations in backward (non-reentrant): less memory, slower",
        group=MACHINE,
    )
    compile: bool = setting(
        False,
        "torch.compile for the language model's layers and SAM's blocks; needs a compiler, takes minutes",
        group=MACHINE,
    )
    cuda_graphs: bool = setting(
        False,
        "record language model and frozen encoders for each length of rows and launch them as a whole: faster where "
        "the host is slower than the GPU",
        group=MACHINE,
    )
    num_threads: int | None = setting(
        None, "CPU threads of each process", group=MACHINE, unset="torch's choice"
    )
    max_bad_steps: int | None = setting(
        20,
        "stop after this number of consecutive steps with a non-finite loss or gradient (exit code 3); none: never",
        group=MACHINE,
    )
    rank_timeout: float | None = setting(
        50.0,
        "seconds that processes wait for one that does not start, or falls silent, before the run ends (exit code 4)",
        group=MACHINE,
    )
    profile: int = setting(
        0,
        "number of steps to profile after warm-up, written to runs/EXP/profile; 3 without a number",
        group=MACHINE,
        alone=3,
    )
    local_rank: int = setting(-1, "set by the launcher", group=MACHINE)

    val_dataset_list: str = setting(
        "ReasonSeg|val",
        "data sets to validate on after each epoch; the first one decides which epoch is the best",
        group=VALIDATION,
        alias="val_dataset",
    )
    no_eval: bool = setting(False, "do not validate; only the newest weights are kept", group=VALIDATION)
    val_batch_size: int = setting(1, "images of a batch in validation", group=VALIDATION)
    max_val_samples: int | None = setting(
        None, "maximum number of samples of each data set", group=VALIDATION, unset="all"
    )
    classes_per_query: int | None = setting(
        None, "classes that one query names in validation", group=VALIDATION, unset="--num_all_classes"
    )

    log_base_dir: str = setting("./runs", "parent folder of all runs", group=OUTPUT, path=True)
    exp_name: str = setting("lasagna", "name of the run; its folder holds checkpoints and logs", group=OUTPUT)
    report_to: str = setting(
        "tensorboard",
        "trackers of curves and images: tensorboard, wandb, trackio, several separated by commas, or none",
        group=OUTPUT,
    )
    print_config: bool = setting(
        False, "print all settings as YAML that --config reads, and stop", group=OUTPUT
    )
    dry_run: bool = setting(
        False,
        "train one step with a batch of each data set, print lengths and memory, and stop; nothing is saved",
        group=OUTPUT,
    )
    auto_resume: bool = setting(True, "continue from the run's newest checkpoint", group=OUTPUT)
    resume_weights_only: bool = setting(
        False,
        "continue with the weights alone and a fresh optimizer, whose settings may differ",
        group=OUTPUT,
    )
    save_every_minutes: float | None = setting(
        20.0, "minutes after which a save is made within an epoch; none: no saves by time", group=OUTPUT
    )
    save_every_steps: int | None = setting(
        None, "steps after which a save is made within an epoch", group=OUTPUT, unset="no saves by steps"
    )
    keep_last: int = setting(1, "number of newest saves to keep, besides the best", group=OUTPUT)
    disk_patience: float = setting(
        5.0, "minutes to retry while the disk is full or unavailable; then the run ends", group=OUTPUT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "epochs", "steps_per_epoch", "batch_size", "grad_accumulation_steps", "lr", "val_batch_size",
            "grad_clip", "lora_alpha", "num_threads", "max_bad_steps", "max_val_samples",
            "classes_per_query", "keep_last", "save_every_minutes", "save_every_steps", "rank_timeout",
            "min_image_tokens", "max_image_tokens", "pad_to_multiple_of",
        )  # fmt: skip
        require_at_most(self, MAX_PARALLEL, "workers", "num_threads")
        require_at_most(self, MAX_SECONDS, "rank_timeout")
        require_at_most(self, MAX_MULTIPLE, "pad_to_multiple_of")
        require_at_most(self, MAX_RANK, "lora_r")
        require_not_negative(
            self, "workers", "sam_cache_gb", "warmup_steps", "lora_r", "weight_decay", "profile",
            "ce_loss_weight", "bce_loss_weight", "dice_loss_weight", "map_bce_loss_weight", "map_dice_loss_weight",
            "presence_loss_weight", "disk_patience",
        )  # fmt: skip
        check_spatial(self.spatial_prompt, self.num_latent_prompts, self.mask_head)
        if max(self.lr, self.weight_decay, self.lr * self.weight_decay) > MAX_STEP_SIZE:
            raise UserError(
                f"--lr {self.lr:g} and --weight_decay {self.weight_decay:g}, and their product, must be at most "
                f"{MAX_STEP_SIZE:g}: float32 holds no larger steps"
            )
        require_fraction(self, "lora_dropout")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} must be in [0, 1), got {getattr(self, name)}")
        if self.sam_cache_gb is not None and not self.sam_cache:
            raise UserError(
                f"--sam_cache_gb {self.sam_cache_gb:g} needs --sam_cache: the folder that it limits"
            )
        check_run_name(self.exp_name)
        _ = self.trackers  # their names are checked
        if self.resume_weights_only and not self.auto_resume:
            raise UserError(
                "--resume_weights_only continues a run, which --no_auto_resume forbids; leave one out"
            )
        check_speed(self)
        if not self.version:
            raise UserError("--version says which model to start from: the folder of a LLaVA")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def adapters(self) -> dict[str, Any]:
        """What `model.lora.adapt` is told: the layers of the language model that get adapters, and how."""
        return {
            "layers": tuple(name.strip() for name in self.lora_target_modules.split(",") if name.strip()),
            "rank": self.lora_r,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "embeddings": self.trained_embeddings,
        }

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss, by its name in `model.losses.Losses`."""
        return {
            "cross_entropy": self.ce_loss_weight,
            "mask_bce": self.bce_loss_weight,
            "dice": self.dice_loss_weight,
            "map_bce": self.map_bce_loss_weight,
            "map_dice": self.map_dice_loss_weight,
            "presence": self.presence_loss_weight,
        }

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers of curves and images, by name."""
        return trackers_named(self.report_to)

    @property
    def run_dir(self) -> Path:
        """The folder of the run: checkpoints and logs."""
        return Path(self.log_base_dir) / self.exp_name
