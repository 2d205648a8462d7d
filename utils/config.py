"""Settings of the scripts: a field is a flag is a YAML key, declared once with type, default and meaning.

    config = parse_config(TrainConfig)        # defaults < --config FILE.yaml < flags

A boolean that is on by default has a switch --no_NAME.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.sequence import TOKENS_OF_FORMAT, SequenceFormat
from utils.matching import DEFAULT_MATCH_DISTANCE
from utils.settings import check_choices, require_not_negative, require_positive, setting

PRECISIONS = ("fp32", "bf16", "fp16")
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
MERGE_FORMATS = ("lasagna", "lisa")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it is written: training, `utils.data.check` and `utils.data.preview` share it."""

    # how samples are written
    version: str = setting("", "model to start from: a LLaVA, or any model of this family (warm start)")
    format: str = setting("paper", "how complex queries are written", tuple(TOKENS_OF_FORMAT))
    conv_type: str = setting("llava_v1", "prompt template: llava_v1, llava_llama_2 or chat_template")
    model_max_length: int = setting(
        1024, "most text tokens of a conversation; image features are not counted"
    )
    random_classes_list: bool = setting(True, "ask for random subsets of the class list, not all of it")
    sequence_augmentation: bool = setting(True, "answer absent classes too, with [NEG]")
    order_following: bool = setting(True, "answer in the order of the query")
    # data
    dataset_dir: str = setting("./dataset", "root of the data sets")
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
    num_all_classes: int = setting(80, "most classes that one complex query names")
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
        for name in ("explanatory", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share, 0 to 1, got {getattr(self, name)}")

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
    vision_tower: str = setting("", "CLIP folder, for a LLaVA that has no tower inside")
    vision_pretrained: str = setting("", "SAM file (sam_vit_h_4b8939.pth)")
    attn_implementation: str = setting("auto", "attention of the language model", ATTENTION)
    # loading
    fast_resize: bool = setting(False, "resize pictures faster, within two grey levels")
    pack: bool = setting(
        True, "conversations of one image share its prefix in one row: same losses, fewer tokens"
    )
    workers: int = setting(4, "processes that load data, for each training process")
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
        True, "recompute activations of the language model: less memory, slower"
    )
    num_threads: int = setting(0, "CPU threads of each process; 0: torch's choice")
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
    log_base_dir: str = setting("./runs", "where runs are kept")
    exp_name: str = setting("lasagna", "name of the run; its folder holds checkpoints and logs")
    auto_resume: bool = setting(True, "continue from the run's newest checkpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        _fold_alias(self)
        require_positive(
            self, "epochs", "steps_per_epoch", "batch_size", "grad_accumulation_steps", "lr", "val_batch_size",
            "grad_clip", "lora_alpha",
        )  # fmt: skip
        require_not_negative(
            self, "workers", "warmup_steps", "lora_r", "max_val_samples", "weight_decay", "num_threads",
            "classes_per_query", "ce_loss_weight", "bce_loss_weight", "dice_loss_weight",
        )  # fmt: skip
        if not 0 <= self.lora_dropout <= 1:
            raise ValueError(f"--lora_dropout is a share, 0 to 1, got {self.lora_dropout}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must be in [0, 1), got {getattr(self, name)}")
        if self.exp_name in ("", ".", ".."):
            raise ValueError(
                f"--exp_name {self.exp_name!r} names no folder of its own in {self.log_base_dir}"
            )
        if not self.version:
            raise ValueError("--version says which model to start from: the folder of a LLaVA")

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


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """What test_sem.py can be told."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    version: str = setting("", "model folder: what the merge script wrote")
    precision: str = setting("bf16", "number format of weights and activations", PRECISIONS)
    num_threads: int = setting(0, "CPU threads of each process; 0: torch's choice")
    local_rank: int = setting(-1, "set by the launcher")
    # what is evaluated
    dataset_dir: str = setting("./dataset", "root of the data sets")
    val_dataset_list: str = setting(
        "ade20k",
        'data sets: "ade20k,refcoco|unc|val,grefcoco|unc|val,ReasonSeg|val"; all: every one that is there',
    )
    val_dataset: str = setting("", "one entry; another name for --val_dataset_list")
    eval_only: bool = setting(True, "accepted for older command lines; this script only evaluates")
    max_samples: int | None = setting(None, "only so many samples of each data set")
    val_batch_size: int = setting(1, "images of a batch")
    workers: int = setting(0, "processes that read samples ahead, for each evaluating process")
    seed: int = setting(0, "draws the pairs of the presence test and the images of the confidence intervals")
    # how the model is asked
    classes_per_query: int | None = setting(None, "classes that one query names; longer lists are split")
    presence_threshold: float | None = setting(
        None, "a class is there from this probability on, decided while decoding; empty: arg-max"
    )
    rethreshold: float | None = setting(
        None, "a class is there from this probability on, decided when all are known; empty: as decoded"
    )
    calibrate: bool = setting(False, "find the threshold of finished probabilities with the best F1")
    oracle_classes: bool = setting(False, "ask each image only for the classes that it shows")
    free_generation: bool = setting(False, "complex queries without the constraint of their format")
    match_distance: float = setting(
        DEFAULT_MATCH_DISTANCE, "largest share of wrong letters in a freely generated class name"
    )
    teacher_forced: bool = setting(False, "the older protocol: referring and reasoning with the answer given")
    max_new_tokens: int = setting(128, "longest generated answer")
    # what is written
    report_dir: str = setting("", "where the report goes, and finished samples while it runs")
    resume: bool = setting(False, "continue the evaluation that was killed, from what --report_dir holds")
    vis_save_path: str = setting("", "where pictures of some samples go")
    save_predictions: str = setting("", "folder for label pictures and masks, for other programs")
    # pictures without ground truth
    images: str = setting("", "predict these pictures instead of evaluating: 'photos/*.jpg', or a folder")
    classes: str = setting("", "what to look for in them: a text file, one class a line")

    def __post_init__(self) -> None:
        _fold_alias(self)
        check_choices(self)
        require_positive(self, "val_batch_size", "classes_per_query", "max_samples", "max_new_tokens")
        require_not_negative(self, "num_threads", "workers", "seed")
        _require_version(self.version)
        if bool(self.images) != bool(self.classes):
            raise ValueError("--images and --classes belong together: pictures, and what to look for in them")
        if self.images:
            self._check_prediction()

    def _check_prediction(self) -> None:
        """Settings that mean nothing without ground truth, or without a report."""
        if not self.save_predictions:
            raise ValueError("--images needs --save_predictions: the folder that the results go to")
        unused = (
            "report_dir", "resume", "vis_save_path", "calibrate", "oracle_classes", "free_generation",
            "teacher_forced", "max_samples",
        )  # fmt: skip
        if given := [f"--{name}" for name in unused if getattr(self, name)]:
            raise ValueError(f"{', '.join(given)} means nothing with --images, which are only predicted")


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What chat.py can be told."""

    version: str = setting("", "model folder: what the merge script wrote")
    image: str = setting("", "picture for one answer; without it, a conversation starts")
    prompt: str = setting("", "question for one answer")
    classes: str = setting("", 'classes for one complex query: "person, tree, dog"')
    vis_save_path: str = setting("./vis_output", "where masks and overlays go")
    classes_per_query: int | None = setting(None, "classes that one query names; longer lists are split")
    presence_threshold: float | None = setting(
        None, "a class is there from this probability on; empty: arg-max"
    )
    max_new_tokens: int = setting(256, "longest answer")
    precision: str = setting("bf16", "number format of weights and activations", PRECISIONS)
    load_in_8bit: bool = setting(False, "language model in 8 bit; needs a GPU and bitsandbytes")
    load_in_4bit: bool = setting(False, "language model in 4 bit; needs a GPU and bitsandbytes")

    def __post_init__(self) -> None:
        check_choices(self)
        require_positive(self, "max_new_tokens", "classes_per_query")
        _require_version(self.version)
        _check_quantization(self)

    @property
    def quantization(self) -> str | None:
        """As `load_model` takes it."""
        return "8bit" if self.load_in_8bit else "4bit" if self.load_in_4bit else None


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What merge_lora_weights_and_save_hf_model.py can be told."""

    version: str = setting("", "model that training started from; empty: as the run says")
    weight: str = setting("", "checkpoint folder of the run, or what zero_to_fp32.py made of it")
    save_path: str = setting("", "folder to write; must not exist")
    vision_tower: str = setting("", "CLIP folder; empty: as the run says")
    vision_pretrained: str = setting("", "SAM file; empty: as the run says")
    lora_alpha: float | None = setting(None, "only where the run's settings are not beside the weights")
    tag: str | None = setting(None, "which save of a checkpoint folder; empty: the newest")
    precision: str = setting("bf16", "number format of the weights written", PRECISIONS)
    format: str = setting("lasagna", "layout to write: ours, or that of the released code", MERGE_FORMATS)
    report: str = setting("", "report.json of test_sem.py, whose numbers go into the model card")
    push_to_hub: str = setting("", "NAME/MODEL: upload to this private repository of the Hugging Face hub")

    def __post_init__(self) -> None:
        check_choices(self)
        require_positive(self, "lora_alpha")
        if self.push_to_hub and self.push_to_hub.count("/") > 1:
            raise ValueError(f"--push_to_hub {self.push_to_hub} must read NAME/MODEL, or MODEL for your own")
        if not self.weight:
            raise ValueError("--weight says which weights to merge: the ckpt_model folder of a run")


def _fold_alias(config: Any) -> None:
    """--val_dataset is another name; settings that are saved hold the list alone, so that a flag can win."""
    if config.val_dataset:
        object.__setattr__(config, "val_dataset_list", config.val_dataset)
        object.__setattr__(config, "val_dataset", "")


def _check_quantization(config: Any) -> None:
    if config.load_in_8bit and config.load_in_4bit:
        raise ValueError("--load_in_8bit and --load_in_4bit exclude each other; choose one")


def _require_version(version: str) -> None:
    if not version:
        raise ValueError("--version says which model to load: the folder that the merge script wrote")
