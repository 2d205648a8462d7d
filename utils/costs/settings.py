"""Settings of this folder's commands, memory and flops."""

from __future__ import annotations

from dataclasses import dataclass

from utils.common.checks import require_not_negative, require_positive
from utils.common.settings import setting
from utils.config.training import TrainConfig
from utils.costs.assumptions import (
    DISK_BYTES,
    FILES_PER_SAMPLE,
    GPUS_PER_NODE,
    LOADER_RATE,
    MASKS_PER_IMAGE,
    NETWORK,
    NUM_IMAGES,
    NVLINK,
    OPEN_MS,
    PEAK_TFLOPS,
    SERVER_OPENS,
    SUSTAINED,
)

COSTS = "costs"  # the group of the settings that are not training's


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(TrainConfig):
    """The settings of training, and those of the estimate."""

    gpus: int = setting(8, "processes, one per GPU", group=COSTS)
    masks: int = setting(MASKS_PER_IMAGE, "number of [SEG] of one image", group=COSTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "gpus", "masks")


@dataclass(frozen=True, kw_only=True)
class FlopsConfig(TrainConfig):
    """The settings of training, and those of the estimate."""

    gpus: int = setting(8, "processes, one per GPU", group=COSTS)
    images: int | None = setting(None, "images of a micro-batch", group=COSTS, unset="--batch_size")
    conversations: int = setting(5, "conversations of each image, packed in one row", group=COSTS)
    classes: int = setting(0, "classes that each one asks for; 0 is a referring question", group=COSTS)
    masks: int | None = setting(
        None, "number of [SEG] of each image", group=COSTS, unset="one per conversation"
    )
    tflops: float = setting(PEAK_TFLOPS * SUSTAINED, "sustained TFLOP/s of a GPU", group=COSTS)
    bandwidth: float | None = setting(
        None,
        "GB/s of each GPU",
        group=COSTS,
        unset=f"{NVLINK:.0f} in a node of {GPUS_PER_NODE}, {NETWORK:.0f} between nodes",
    )
    disk_bytes: int = setting(DISK_BYTES, "bytes of one sample on disk", group=COSTS)
    disk_images: int = setting(NUM_IMAGES, "images of all data sets together", group=COSTS)
    disk_files: float = setting(FILES_PER_SAMPLE, "files opened for one sample", group=COSTS)
    open_ms: float = setting(OPEN_MS, "milliseconds that an opening takes", group=COSTS)
    server_opens: float = setting(
        SERVER_OPENS, "openings per second that the disk answers, of all nodes together", group=COSTS
    )
    loader_rate: float = setting(
        LOADER_RATE, "images/s of a loading process that does not wait for the disk", group=COSTS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "gpus", "images", "conversations", "masks", "tflops", "bandwidth", "disk_bytes",
            "disk_images", "disk_files", "server_opens", "loader_rate",
        )  # fmt: skip
        require_not_negative(self, "classes", "open_ms")
