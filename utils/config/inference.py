"""Settings of test_sem.py and of the merge script, and which model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.choices import DEFAULT_MATCH_DISTANCE, DEFAULT_NEW_TOKENS
from model.errors import UserError
from utils.common.checks import (
    MAX_PARALLEL,
    MAX_SECONDS,
    check_choices,
    require_at_most,
    require_not_negative,
    require_positive,
)
from utils.common.settings import setting
from utils.config.data import (
    DATA,
    MACHINE,
    MODEL,
    OUTPUT,
    TOY,
    encoder_precision_setting,
    index_cache_setting,
    shard_cache_gb_setting,
    shard_cache_setting,
)
from utils.config.training import ATTENTION, PRECISIONS

TOY_ASSISTANT = TOY / "assistant"
TOY_REMARK = """\
No --version: the toy assistant answers, which knows cartoon scenes alone.
Try assets/toy/examples/street.jpg, then :classes car, person, boat or ask:
Can you segment the blue car?"""
MERGE_LAYOUTS = ("lasagna", "lisa")
STORED = "auto"  # a precision that is not changed
PROMPTING, PREDICTION, QUESTION = "prompting", "images without ground truth", "question"
CHECKPOINT, AS_RUN = "checkpoint", "as the run says"


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """Settings of loading a model, shared by test_sem.py and chat.py."""

    version: str = setting(
        "",
        "model folder that the merge script wrote",
        group=MODEL,
        unset="the toy assistant of this repository, for chat.py and for --images",
        path=True,
    )
    precision: str = setting(
        STORED,
        "dtype of weights and activations; auto keeps that of the folder",
        (STORED, *PRECISIONS),
        group=MODEL,
    )
    encoder_precision: str = encoder_precision_setting(MODEL)
    attn_implementation: str = setting("auto", "attention of the language model", ATTENTION, group=MODEL)
    verify: bool = setting(
        False, "compare the files of the folder with the SHA-256 in its manifest.json first", group=MODEL
    )
    load_in_8bit: bool = setting(False, "language model in 8 bit; needs a GPU and bitsandbytes", group=MODEL)
    load_in_4bit: bool = setting(False, "language model in 4 bit; needs a GPU and bitsandbytes", group=MODEL)

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.version and not self.may_be_the_toy:
            raise UserError("--version says which model to load: the folder that the merge script wrote")
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("--load_in_8bit and --load_in_4bit exclude each other; choose one")

    @property
    def may_be_the_toy(self) -> bool:
        """Whether the toy assistant is loaded where no model is named."""
        return True

    @property
    def model_folder(self) -> str:
        """The model that is loaded."""
        return self.version or str(TOY_ASSISTANT)

    @property
    def loading(self) -> dict[str, Any]:
        """As `load_model` takes it."""
        from utils.common.distributed import dtype_unless_stored  # PyTorch, for which --help does not wait

        return {
            "dtype": dtype_unless_stored(self.precision),
            "encoder_precision": self.encoder_precision,
            "attn_implementation": self.attn_implementation,
            "quantization": "8bit" if self.load_in_8bit else "4bit" if self.load_in_4bit else None,
        }


@dataclass(frozen=True, kw_only=True)
class TestConfig(LoadingConfig):
    """Settings of test_sem.py."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    dataset_dir: str = setting("./dataset", "root folder of the data sets", group=DATA, path=True)
    val_dataset_list: str = setting(
        "ade20k",
        'data sets, as in "ade20k,refcoco|unc|val,ReasonSeg|val"; all: every one that is there',
        group=DATA,
        alias="val_dataset",
    )
    index_cache: str = index_cache_setting()
    shard_cache: str = shard_cache_setting()
    shard_cache_gb: float | None = shard_cache_gb_setting()
    max_samples: int | None = setting(
        None, "maximum number of samples of each data set", group=DATA, unset="all"
    )
    seed: int = setting(
        0, "random seed of the pairs of the presence test and of the confidence intervals", group=DATA
    )
    eval_only: bool = setting(True, "accepted for older command lines; without effect", group=DATA)

    classes_per_query: int | None = setting(
        None, "classes that one query names; longer lists are split", group=PROMPTING, unset="as in training"
    )
    presence_threshold: float | None = setting(
        None,
        "probability from which a class counts as present, decided while decoding",
        group=PROMPTING,
        unset="arg-max",
    )
    rethreshold: float | None = setting(
        None,
        "the same, applied to the finished probabilities",
        group=PROMPTING,
        unset="as decoded",
    )
    calibrate: bool = setting(
        False, "find the threshold of finished probabilities with the best F1", group=PROMPTING
    )
    oracle_classes: bool = setting(
        False, "ask about each image only for the classes that it shows", group=PROMPTING
    )
    free_generation: bool = setting(False, "complex queries without constrained decoding", group=PROMPTING)
    match_distance: float = setting(
        DEFAULT_MATCH_DISTANCE,
        "maximum edit distance of a freely generated class name, as a fraction of its letters",
        group=PROMPTING,
    )
    teacher_forced: bool = setting(
        False, "the older protocol: referring and reasoning with the answer given", group=PROMPTING
    )
    max_new_tokens: int = setting(
        DEFAULT_NEW_TOKENS, "maximum number of tokens of a generated answer", group=PROMPTING
    )

    images: str = setting(
        "",
        "predict these images instead of evaluating: 'photos/*.jpg', or a folder",
        group=PREDICTION,
        path=True,
    )
    classes: str = setting(
        "", "classes to look for: a text file, one class per line", group=PREDICTION, path=True
    )

    val_batch_size: int = setting(1, "images of a batch", group=MACHINE)
    workers: int = setting(0, "data loading processes of each evaluating process", group=MACHINE)
    num_threads: int | None = setting(
        None, "CPU threads of each process", group=MACHINE, unset="torch's choice"
    )
    rank_timeout: float | None = setting(
        50.0,
        "seconds that processes wait for one that does not start, or falls silent, before they end (exit code 4)",
        group=MACHINE,
    )
    local_rank: int = setting(-1, "set by the launcher", group=MACHINE)

    report_dir: str = setting(
        "", "folder of the report, and of finished samples until it is there", group=OUTPUT, path=True
    )
    resume: bool = setting(
        False, "continue a killed evaluation from the finished samples in --report_dir", group=OUTPUT
    )
    vis_save_path: str = setting("", "folder for drawings of some samples", group=OUTPUT, path=True)
    save_predictions: str = setting(
        "", "folder for label images and masks that other programs read", group=OUTPUT, path=True
    )
    save_maps: bool = setting(
        False,
        "where each [SEG] looks, as heat maps in --save_predictions; of a model trained with --spatial_prompt",
        group=OUTPUT,
    )

    @property
    def may_be_the_toy(self) -> bool:
        """See `LoadingConfig`: its scores on a data set would be taken for those of a model."""
        return bool(self.images)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "val_batch_size", "classes_per_query", "max_samples", "max_new_tokens", "num_threads",
            "rank_timeout",
        )  # fmt: skip
        require_at_most(self, MAX_PARALLEL, "workers", "num_threads")
        require_at_most(self, MAX_SECONDS, "rank_timeout")
        require_not_negative(self, "workers", "seed")
        if bool(self.images) != bool(self.classes):
            raise UserError("--images and --classes belong together: images, and what to look for in them")
        if self.images:
            self._check_prediction()

    def _check_prediction(self) -> None:
        """UserError for settings that need ground truth or a report."""
        if not self.save_predictions:
            raise UserError("--images needs --save_predictions: the folder that the results go to")
        unused = (
            "report_dir", "resume", "vis_save_path", "calibrate", "oracle_classes", "free_generation",
            "teacher_forced", "max_samples",
        )  # fmt: skip
        if given := [f"--{name}" for name in unused if getattr(self, name)]:
            raise UserError(f"{', '.join(given)} means nothing with --images, which are only predicted")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Settings of merge_lora_weights_and_save_hf_model.py."""

    weight: str = setting(
        "",
        "checkpoint folder of the run, or what zero_to_fp32.py made of it (required)",
        group=CHECKPOINT,
        path=True,
    )
    tag: str = setting("", "which save of a checkpoint folder", group=CHECKPOINT, unset="the newest")
    verify: bool = setting(
        False,
        "compare all files with the SHA-256 in manifest.json first, also of the base where it has one",
        group=CHECKPOINT,
    )
    lora_alpha: float | None = setting(
        None, "only where the run's settings are not beside the weights", group=CHECKPOINT, unset=AS_RUN
    )

    version: str = setting("", "model that training started from", group=MODEL, unset=AS_RUN, path=True)
    vision_tower: str = setting("", "CLIP folder", group=MODEL, unset=AS_RUN, path=True)
    vision_pretrained: str = setting("", "SAM file", group=MODEL, unset=AS_RUN, path=True)

    save_path: str = setting("", "folder to write, which must not exist (required)", group=OUTPUT, path=True)
    layout: str = setting(
        "lasagna",
        "files to write: lasagna for ours, lisa for those of the released code",
        MERGE_LAYOUTS,
        group=OUTPUT,
        misnomer="format",
    )
    precision: str = setting(
        STORED,
        "dtype of the weights written; auto keeps that of the run, or else of the base",
        (STORED, *PRECISIONS),
        group=OUTPUT,
    )
    report: str = setting(
        "", "report.json of test_sem.py, whose numbers go into the model card", group=OUTPUT, path=True
    )
    push_to_hub: str = setting(
        "", "NAME/MODEL: upload to this private repository of the Hugging Face hub", group=OUTPUT
    )

    def __post_init__(self) -> None:
        check_choices(self)
        require_positive(self, "lora_alpha")
        if self.push_to_hub and self.push_to_hub.count("/") > 1:
            raise UserError(f"--push_to_hub {self.push_to_hub} must read NAME/MODEL, or MODEL for your own")
        if not self.weight:
            raise UserError("--weight says which weights to merge: the ckpt_model folder of a run")
