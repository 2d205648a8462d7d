"""Settings of the scripts that use a trained model: test_sem.py, chat.py and the merge script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.errors import UserError
from model.generation.answers import DEFAULT_MATCH_DISTANCE
from model.generation.inference import DEFAULT_NEW_TOKENS
from utils.common.distributed import dtype_unless_stored
from utils.common.settings import check_choices, require_not_negative, require_positive, setting
from utils.config.training import ATTENTION, PRECISIONS, fold_alias

MERGE_LAYOUTS = ("lasagna", "lisa")
STORED = "auto"  # a precision that is not changed


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """Which model is asked, and how it is loaded: test_sem.py and chat.py share it."""

    version: str = setting("", "model folder: what the merge script wrote", path=True)
    precision: str = setting(
        STORED,
        "number format of weights and activations; auto: as the folder stores them",
        (STORED, *PRECISIONS),
    )
    attn_implementation: str = setting("auto", "attention of the language model", ATTENTION)
    load_in_8bit: bool = setting(False, "language model in 8 bit; needs a GPU and bitsandbytes")
    load_in_4bit: bool = setting(False, "language model in 4 bit; needs a GPU and bitsandbytes")

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.version:
            raise UserError("--version says which model to load: the folder that the merge script wrote")
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("--load_in_8bit and --load_in_4bit exclude each other; choose one")

    @property
    def loading(self) -> dict[str, Any]:
        """As `load_model` takes it."""
        return {
            "dtype": dtype_unless_stored(self.precision),
            "attn_implementation": self.attn_implementation,
            "quantization": "8bit" if self.load_in_8bit else "4bit" if self.load_in_4bit else None,
        }


@dataclass(frozen=True, kw_only=True)
class TestConfig(LoadingConfig):
    """What test_sem.py can be told."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    num_threads: int = setting(0, "CPU threads of each process; 0: torch's choice")
    local_rank: int = setting(-1, "set by the launcher")
    # what is evaluated
    dataset_dir: str = setting("./dataset", "root of the data sets", path=True)
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
    classes_per_query: int | None = setting(
        None, "classes that one query names, longer lists are split; empty: as many as in training"
    )
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
    max_new_tokens: int = setting(DEFAULT_NEW_TOKENS, "longest generated answer")
    # what is written
    report_dir: str = setting("", "where the report goes, and finished samples while it runs", path=True)
    resume: bool = setting(False, "continue the evaluation that was killed, from what --report_dir holds")
    vis_save_path: str = setting("", "where pictures of some samples go", path=True)
    save_predictions: str = setting("", "folder for label pictures and masks, for other programs", path=True)
    # pictures without ground truth
    images: str = setting(
        "", "predict these pictures instead of evaluating: 'photos/*.jpg', or a folder", path=True
    )
    classes: str = setting("", "what to look for in them: a text file, one class a line", path=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        fold_alias(self)
        require_positive(self, "val_batch_size", "classes_per_query", "max_samples", "max_new_tokens")
        require_not_negative(self, "num_threads", "workers", "seed")
        if bool(self.images) != bool(self.classes):
            raise UserError("--images and --classes belong together: pictures, and what to look for in them")
        if self.images:
            self._check_prediction()

    def _check_prediction(self) -> None:
        """Settings that mean nothing without ground truth, or without a report."""
        if not self.save_predictions:
            raise UserError("--images needs --save_predictions: the folder that the results go to")
        unused = (
            "report_dir", "resume", "vis_save_path", "calibrate", "oracle_classes", "free_generation",
            "teacher_forced", "max_samples",
        )  # fmt: skip
        if given := [f"--{name}" for name in unused if getattr(self, name)]:
            raise UserError(f"{', '.join(given)} means nothing with --images, which are only predicted")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(LoadingConfig):
    """What chat.py can be told."""

    image: str = setting("", "picture for one answer; without it, a conversation starts", path=True)
    prompt: str = setting("", "question for one answer")
    classes: str = setting("", 'classes for one complex query: "person, tree, dog"')
    vis_save_path: str = setting("./vis_output", "where masks and overlays go", path=True)
    classes_per_query: int | None = setting(
        None, "classes that one query names, longer lists are split; empty: as many as in training"
    )
    presence_threshold: float | None = setting(
        None, "a class is there from this probability on; empty: arg-max"
    )
    max_new_tokens: int = setting(DEFAULT_NEW_TOKENS, "longest generated answer")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_new_tokens", "classes_per_query")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What merge_lora_weights_and_save_hf_model.py can be told."""

    version: str = setting("", "model that training started from; empty: as the run says", path=True)
    weight: str = setting("", "checkpoint folder of the run, or what zero_to_fp32.py made of it", path=True)
    save_path: str = setting("", "folder to write; must not exist", path=True)
    vision_tower: str = setting("", "CLIP folder; empty: as the run says", path=True)
    vision_pretrained: str = setting("", "SAM file; empty: as the run says", path=True)
    lora_alpha: float | None = setting(None, "only where the run's settings are not beside the weights")
    tag: str | None = setting(None, "which save of a checkpoint folder; empty: the newest")
    precision: str = setting(
        STORED,
        "number format of the weights written; auto: that of the run, else as the base is stored",
        (STORED, *PRECISIONS),
    )
    layout: str = setting(
        "lasagna", "files to write: lasagna for ours, lisa for those of the released code", MERGE_LAYOUTS
    )
    report: str = setting("", "report.json of test_sem.py, whose numbers go into the model card", path=True)
    push_to_hub: str = setting("", "NAME/MODEL: upload to this private repository of the Hugging Face hub")

    def __post_init__(self) -> None:
        check_choices(self)
        require_positive(self, "lora_alpha")
        if self.push_to_hub and self.push_to_hub.count("/") > 1:
            raise UserError(f"--push_to_hub {self.push_to_hub} must read NAME/MODEL, or MODEL for your own")
        if not self.weight:
            raise UserError("--weight says which weights to merge: the ckpt_model folder of a run")
