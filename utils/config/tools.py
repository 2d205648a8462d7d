"""Settings of the commands about data: check, preview, shard."""

from __future__ import annotations

from dataclasses import dataclass

from utils.common.checks import require_positive
from utils.common.settings import setting
from utils.config.data import DATA, MODEL, OUTPUT, TOY, DataConfig


@dataclass(frozen=True, kw_only=True)
class LookConfig(DataConfig):
    """The data flags of training, empty by default."""

    dataset: str = setting("", "sources to look at", group=DATA, unset="whatever is found")
    sem_seg_data: str = setting("", "semantic data sets", group=DATA)
    refer_seg_data: str = setting("", "referring data sets", group=DATA)
    neg_refer_seg_data: str = setting("", "referring data sets with negative sentences", group=DATA)
    vqa_data: str = setting("", "data sets of questions answered in words", group=DATA)
    reason_seg_data: str = setting("", "reasoning data sets", group=DATA)
    num_samples: int = setting(50, "samples drawn from each data set", group=OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_samples")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(LookConfig):
    """The settings of the check: the data flags of training. Without any, all data sets that exist are checked."""

    version: str = setting(
        "", "model whose tokenizer counts tokens", group=MODEL, unset="not counted", path=True
    )
    val_dataset_list: str = setting(
        "",
        "evaluation sets to check, as in ade20k|val,refcoco|unc|testA; all: what is found",
        group=DATA,
        alias="val_dataset",
    )
    all: bool = setting(False, "read every file, not a sample", group=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class PreviewConfig(LookConfig):
    """The settings of the preview: the data flags of training, and the output folder."""

    version: str = setting(
        str(TOY / "llava"),
        "model whose tokenizer is used",
        group=MODEL,
        unset="that of the toy world",
        path=True,
    )
    num_samples: int = setting(16, "samples to show, the first ones of the run", group=OUTPUT)
    out: str = setting("runs/preview", "folder to write to", group=OUTPUT, path=True)


@dataclass(frozen=True, kw_only=True)
class ShardConfig(LookConfig):
    """The data flags of training, and where the shards go."""

    val_dataset_list: str = setting(
        "", "evaluation sets to pack, too; all: what is found", group=DATA, alias="val_dataset"
    )
    out: str = setting("", "folder or URL to write the shards to; required", group=OUTPUT, path=True)
    shard_mb: int = setting(
        256, "size of a shard in MB (10^6 bytes); a larger file has its own", group=OUTPUT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "shard_mb")
