"""Settings of training: a field is a flag is a YAML key, declared once with type, default and meaning.

    config = parse_config(TrainConfig)        # defaults < --config FILE.yaml < flags

A boolean that is on by default has a switch --no_NAME. Those of the other scripts: utils/config/inference.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.text.conversation import PROMPTS
from model.text.format import DEFAULT_NUM_ALL_CLASSES, TOKENS_OF_FORMAT, SequenceFormat
from utils.common.settings import check_choices, require_not_negative, require_positive, setting

PRECISIONS = ("fp32", "bf16", "fp16")
MAX_STEP_SIZE = 1e30  # AdamW's first step is ten times that, and float32 ends at 3e38
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it is written: training and the commands `check` and `preview` share it."""

    # how samples are written
    version: str = setting(
        "", "model to start from: a LLaVA, or any model of this family (warm start)", path=True
    )
    format: str = setting("paper", "how complex queries are written", tuple(TOKENS_OF_FORMAT))
    conv_type: str = setting("llava_v1", "prompt template of conversations", tuple(PROMPTS))
    model_max_length: int = setting(
        1024, "most text tokens of a conversation; image features are not counted"
    )
    random_classes_list: bool = setting(True, "ask for random subsets of the class list, not all of it")
    sequence_augmentation: bool = setting(True, "answer absent classes too, with [NEG]")
    order_following: bool = setting(True, "answer in the order of the query")
    # data
    dataset_dir: str = setting("./dataset", "root of the data sets", path=True)
    dataset: str = setting(
        "sem_seg||refer_seg||vqa||reason_seg", "sources to draw from, also own data: own_sem:PATH"
    )
    sample_rates: str = setting("", "a rate for each source: 10,6,1,2; empty: the recipe's, 10 for own data")
    sem_seg_data: str = setting("ade20k||cocostuff||cityscapes", "semantic data sets")
    sem_seg_rates: str = setting("", "a rate for each of them; empty: those of the recipe")
    refer_seg_data: str = setting("refclef||refcoco||refcoco+||refcocog", "referring data sets")
    refer_seg_rates: str = setting("", "a rate for each of them; empty: all alike")
    vqa_data: str = setting("llava_instruct_150k", "questions and answers in words")
    vqa_rates: str = setting("", "a rate for each of them; empty: all alike")
    reason_seg_data: str = setting("ReasonSeg|train", "reasoning data sets")
    reason_seg_rates: str = setting("", "a rate for each of them; empty: all alike")
    explanatory: float = setting(0.1, "share of reasoning samples that are answered with an explanation")
    num_all_classes: int = setting(
        DEFAULT_NUM_ALL_CLASSES, "most classes that one complex query names; the model remembers it"
    )
    likely_negatives: float = setting(
        0.0, "share of a query's absent classes drawn among those of another image; the rest evenly"
    )
    num_expressions: int = setting(5, "referring expressions of one image")
    num_questions: int = setting(3, "reasoning questions of one image")
    max_bad_fraction: float = setting(
        0.01, "largest share of unusable items among the draws; more is an error"
    )
    seed: int = setting(0, "decides every random draw")

    def __post_init__(self) -> None:
        check_choices(self)
        require_positive(self, "num_all_classes", "model_max_length", "num_expressions", "num_questions")
        require_not_negative(self, "seed")
        for name in ("explanatory", "likely_negatives", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is a share, 0 to 1, got {getattr(self, name)}")

    @property
    def sequence_format(self) -> SequenceFormat:
        """The format of complex queries with the strategies of this run."""
        return SequenceFormat.named(
            self.format,
            sequence_augmentation=self.sequence_augmentation,
            order_following=self.order_following,
            random_classes_list=self.random_classes_list,
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """What train_ds.py can be told. The defaults are the recipe of the paper for one 7B model."""

    # model
    vision_tower: str = setting("", "CLIP folder, for a LLaVA that has no tower inside", path=True)
    vision_pretrained: str = setting("", "SAM file (sam_vit_h_4b8939.pth)", path=True)
    attn_implementation: str = setting("auto", "attention of the language model", ATTENTION)
    # loading
    fast_resize: bool = setting(False, "resize pictures faster, within two grey levels")
    pack: bool = setting(
        True, "conversations of one image share its prefix in one row: same losses, fewer tokens"
    )
    workers: int = setting(4, "processes that load data, for each training process")
    sam_cache: str = setting(
        "",
        "folder for SAM's image embeddings, so that a picture is encoded once: 2.1 MB each (ViT-H, 16 bits)",
        path=True,
    )
    sam_cache_gb: float = setting(
        0.0,
        "largest size of that folder in 10^9 bytes, 210 for 100,000 pictures; then nothing is added; 0: any",
    )
    # recipe
    epochs: int = setting(36, "number of epochs")
    steps_per_epoch: int = setting(500, "optimizer steps between two validations")
    batch_size: int = setting(2, "images of one micro-batch, for each process")
    grad_accumulation_steps: int = setting(10, "micro-batches of one optimizer step")
    lr: float = setting(3e-4, "peak learning rate, reached after warm-up")
    warmup_steps: int = setting(100, "steps of linear warm-up; a linear decay to zero follows")
    beta1: float = setting(0.9, "AdamW's first beta")
    beta2: float = setting(0.95, "AdamW's second beta")
    weight_decay: float = setting(0.0, "AdamW's weight decay")
    grad_clip: float = setting(1.0, "largest norm of the gradient")
    ce_loss_weight: float = setting(1.0, "weight of the token cross-entropy")
    bce_loss_weight: float = setting(2.0, "weight of the masks' binary cross-entropy")
    dice_loss_weight: float = setting(0.5, "weight of the masks' dice loss")
    lora_r: int = setting(8, "rank of the adapters; 0: none")
    lora_alpha: float = setting(16.0, "scale of the adapters, times 1 / rank")
    lora_dropout: float = setting(0.05, "dropout in front of the adapters")
    lora_target_modules: str = setting("q_proj,v_proj", "layers of the language model that get adapters")
    # machine
    precision: str = setting("bf16", "number format of weights and activations", PRECISIONS)
    zero_stage: int = setting(2, "what DeepSpeed's ZeRO divides among processes", (0, 1, 2, 3))
    gradient_checkpointing: bool = setting(
        True,
        "recompute the language model's activations on the way back (non-reentrant): less memory, slower",
    )
    compile: bool = setting(
        False,
        "torch.compile for the language model's layers and SAM's blocks; needs a compiler, takes minutes",
    )
    max_bad_steps: int = setting(
        20, "stop after so many steps in a row whose loss or gradient is not finite (exit code 3); 0: never"
    )
    num_threads: int = setting(0, "CPU threads of each process; 0: torch's choice")
    profile: int = setting(
        0, "write a profile of so many steps after warm-up to runs/EXP/profile; alone: 3 steps", alone=3
    )
    local_rank: int = setting(-1, "set by the launcher")
    # validation and output
    val_dataset_list: str = setting(
        "ReasonSeg|val", "what to validate on after each epoch; the first one decides"
    )
    val_dataset: str = setting("", "one entry; another name for --val_dataset_list")
    no_eval: bool = setting(False, "do not validate; the newest weights are all there is")
    val_batch_size: int = setting(1, "images of a batch in validation")
    max_val_samples: int = setting(0, "validate on so many samples of each data set; 0: all")
    classes_per_query: int = setting(0, "classes that one query names in validation; 0: num_all_classes")
    log_base_dir: str = setting("./runs", "where runs are kept", path=True)
    exp_name: str = setting("lasagna", "name of the run; its folder holds checkpoints and logs")
    auto_resume: bool = setting(True, "continue from the run's newest checkpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        fold_alias(self)
        require_positive(
            self, "epochs", "steps_per_epoch", "batch_size", "grad_accumulation_steps", "lr", "val_batch_size",
            "grad_clip", "lora_alpha",
        )  # fmt: skip
        require_not_negative(
            self, "workers", "sam_cache_gb", "warmup_steps", "lora_r", "max_val_samples", "weight_decay",
            "num_threads", "max_bad_steps", "classes_per_query", "ce_loss_weight", "bce_loss_weight",
            "dice_loss_weight",
        )  # fmt: skip
        if max(self.lr, self.weight_decay, self.lr * self.weight_decay) > MAX_STEP_SIZE:
            raise UserError(
                f"--lr {self.lr:g} and --weight_decay {self.weight_decay:g}, and their product, must be at most "
                f"{MAX_STEP_SIZE:g}: float32 holds no larger steps"
            )
        if not 0 <= self.lora_dropout <= 1:
            raise UserError(f"--lora_dropout is a share, 0 to 1, got {self.lora_dropout}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} must be in [0, 1), got {getattr(self, name)}")
        if self.sam_cache_gb and not self.sam_cache:
            raise UserError(
                f"--sam_cache_gb {self.sam_cache_gb:g} needs --sam_cache: the folder that it limits"
            )
        if self.exp_name in ("", ".", ".."):
            raise UserError(f"--exp_name {self.exp_name!r} names no folder of its own in {self.log_base_dir}")
        if self.compile and self.zero_stage == 3:
            raise UserError(
                "--compile does not go with --zero_stage 3, which gathers weights around every layer; leave one out"
            )
        if not self.version:
            raise UserError("--version says which model to start from: the folder of a LLaVA")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def lora_pattern(self) -> str:
        """Full names of the layers that get adapters: those of the language model, never the vision tower's."""
        names = "|".join(name.strip() for name in self.lora_target_modules.split(",") if name.strip())
        return rf".*language_model.*\.({names})"

    @property
    def loss_weights(self) -> dict[str, float]:
        return {
            "cross_entropy": self.ce_loss_weight,
            "mask_bce": self.bce_loss_weight,
            "dice": self.dice_loss_weight,
        }

    @property
    def run_dir(self) -> Path:
        return Path(self.log_base_dir) / self.exp_name


def fold_alias(config: Any) -> None:
    """--val_dataset is another name; settings that are saved hold the list alone, so that a flag can win."""
    if config.val_dataset:
        object.__setattr__(config, "val_dataset_list", config.val_dataset)
        object.__setattr__(config, "val_dataset", "")
