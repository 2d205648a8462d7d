"""Settings of the data and of the sequence format, and the groups in which --help lists all settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.choices import AS_THE_MODEL, ENCODER_PRECISIONS
from model.text.format import DEFAULT_NUM_ALL_CLASSES, TOKENS_OF_FORMAT, SequenceFormat
from model.text.templates import PROMPTS
from utils.common.checks import check_choices, require_fraction, require_not_negative, require_positive
from utils.common.paths import resolve
from utils.common.settings import setting

TOY = Path(__file__).resolve().parents[2] / "assets" / "toy"

# Groups of settings; those of the other scripts are among them.
MODEL, FORMAT, DATA, MIXTURE, LOADING = "model", "format", "data", "mixture", "loading"
RECIPE, MACHINE, VALIDATION, OUTPUT = "recipe", "machine", "validation", "output"


def index_cache_setting() -> Any:
    """The setting of the cache of indexes, of every command that opens data sets."""
    return setting(
        "",
        "folder that keeps the indexes of large annotation files, for all processes; none: each reads them anew",
        group=DATA,
        unset="the user's cache folder",
        path=True,
    )


def shard_cache_setting() -> Any:
    """The setting of the cache of shards, of every command that opens data sets."""
    return setting(
        "",
        "folder on a local disk that copies of shards are kept in, for all processes of a machine",
        group=DATA,
        unset="the user's cache folder for URLs, none for folders",
        path=True,
    )


def shard_cache_gb_setting() -> Any:
    """The setting of its size."""
    return setting(
        None,
        "cache size limit in GB (10^9 bytes); shards that do not fit are read from where they lie",
        group=DATA,
        unset="no limit",
    )


def encoder_precision_setting(group: str) -> Any:
    """The setting of the image encoders' precision, of every command that runs a model."""
    return setting(
        AS_THE_MODEL,
        "dtype of the frozen image encoders (SAM's, CLIP): bf16 is two to four times as fast on a CPU that has it, "
        "and embeddings are off by about 1 %",
        ENCODER_PRECISIONS,
        group=group,
        unset="as the rest of the model",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the data and of the sequence format, shared by training and the commands `check` and `preview`."""

    version: str = setting(
        "",
        "model to start from: a LLaVA, or any model of this family (warm start); required",
        group=MODEL,
        path=True,
    )

    format: str = setting("paper", "how complex queries are written", tuple(TOKENS_OF_FORMAT), group=FORMAT)
    conv_type: str = setting(
        "auto",
        "prompt template of conversations; auto: llava_v1 for a LLaVA, its own chat template for another base",
        ("auto", *PROMPTS),
        group=FORMAT,
    )
    model_max_length: int = setting(
        1024, "maximum number of text tokens of a conversation; image features are not counted", group=FORMAT
    )
    num_all_classes: int = setting(
        DEFAULT_NUM_ALL_CLASSES,
        "maximum number of classes that one complex query names; stored in the model's config",
        group=FORMAT,
    )
    random_classes_list: bool = setting(
        True, "ask for random subsets of the class list instead of the whole list", group=FORMAT
    )
    sequence_augmentation: bool = setting(True, "answer absent classes too, with [NEG]", group=FORMAT)
    order_following: bool = setting(True, "answer in the order of the query", group=FORMAT)

    dataset_dir: str = setting("./dataset", "root folder of the data sets", group=DATA, path=True)
    dataset: str = setting(
        "sem_seg||refer_seg||vqa||reason_seg",
        "sources to sample from; own data, for example, as own_sem:PATH (docs/own_data.md)",
        group=DATA,
    )
    sem_seg_data: str = setting("ade20k||cocostuff||cityscapes", "semantic data sets", group=DATA)
    refer_seg_data: str = setting("refclef||refcoco||refcoco+||refcocog", "referring data sets", group=DATA)
    neg_refer_seg_data: str = setting(
        "R-refcoco||R-refcoco+||R-refcocog", "referring data sets with negative sentences", group=DATA
    )
    vqa_data: str = setting("llava_instruct_150k", "data sets of questions answered in words", group=DATA)
    reason_seg_data: str = setting("ReasonSeg|train", "reasoning data sets", group=DATA)
    index_cache: str = index_cache_setting()
    shard_cache: str = shard_cache_setting()
    shard_cache_gb: float | None = shard_cache_gb_setting()
    max_bad_fraction: float = setting(
        0.01, "maximum fraction of draws that hit an unusable item; above it the run ends", group=DATA
    )

    sample_rates: str = setting(
        "",
        "sampling rate of each source, as in 10,6,1,2",
        group=MIXTURE,
        unset="the recipe's, 10 for own data",
    )
    sem_seg_rates: str = setting(
        "", "sampling rate of each semantic data set", group=MIXTURE, unset="the recipe's"
    )
    refer_seg_rates: str = setting(
        "", "sampling rate of each referring data set", group=MIXTURE, unset="all equal"
    )
    neg_refer_seg_rates: str = setting(
        "",
        "sampling rate of each referring data set with negative sentences",
        group=MIXTURE,
        unset="all equal",
    )
    vqa_rates: str = setting("", "sampling rate of each VQA data set", group=MIXTURE, unset="all equal")
    reason_seg_rates: str = setting(
        "", "sampling rate of each reasoning data set", group=MIXTURE, unset="all equal"
    )
    explanatory: float = setting(
        0.1, "fraction of reasoning samples that are answered with an explanation", group=MIXTURE
    )
    likely_negatives: float = setting(
        0.0, "fraction of hard negatives (classes of another image); the rest uniform", group=MIXTURE
    )
    num_expressions: int = setting(5, "referring expressions per image", group=MIXTURE)
    num_questions: int = setting(3, "reasoning questions per image", group=MIXTURE)
    seed: int = setting(0, "seed of every random draw", group=MIXTURE)

    def __post_init__(self) -> None:
        check_choices(self)
        require_positive(self, "num_all_classes", "model_max_length", "num_expressions", "num_questions")
        require_not_negative(self, "seed", "shard_cache_gb")
        require_fraction(self, "explanatory", "likely_negatives", "max_bad_fraction")

    @property
    def prompt_template(self) -> str | None:
        """The name of the prompt template; None for the one that goes with the base."""
        return None if self.conv_type == "auto" else self.conv_type

    @property
    def sequence_format(self) -> SequenceFormat:
        """The format of complex queries with the strategies of this run."""
        return SequenceFormat.named(
            self.format,
            sequence_augmentation=self.sequence_augmentation,
            order_following=self.order_following,
            random_classes_list=self.random_classes_list,
        )


def absolute_own_data(text: str, separator: str) -> str:
    """A list of data sets with absolute folders of own data, as in own_sem:./scans|val, where these are there."""
    entries = []
    for entry in text.split(separator):
        head, *fields = entry.split("|")
        kind, colon, path = head.partition(":")
        place = resolve(path)
        if colon and place and os.path.exists(place):
            head = f"{kind}:{os.path.abspath(place)}"
        entries.append("|".join((head, *fields)))
    return separator.join(entries)
