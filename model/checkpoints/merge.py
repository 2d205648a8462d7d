"""A base model and the weights of a training run become one folder, without the whole model in memory.

The layers of the language model are read one weight at a time, get their adapters, and are written. Everything else -
embeddings, CLIP, SAM, projections, the new tokens - is the *frame* (model/checkpoints/frame.py), which is loaded as
it always is.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch

from model.checkpoints.checkpoint import TrainedWeights, WholeModel, open_checkpoint
from model.checkpoints.frame import check_space, write_frame
from model.checkpoints.layouts import released
from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from model.checkpoints.merged_model import MergedModel
from model.checkpoints.sums import write_sums
from model.checkpoints.trained import mask_head_of, take_settings
from model.checkpoints.write import SHARD_SIZE, finished_folder, require_space, verify, write_shards
from model.errors import UserError
from model.folders import local_folder
from model.lasagna import LasagnaForConditionalGeneration
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.write_errors import writing

logger = logging.getLogger(__name__)


def open_merge(
    version: str,
    trained: TrainedWeights,
    *,
    scratch: Path,
    vision_tower: str | None = None,
    sam: str | None = None,
    dtype: torch.dtype | None = None,
    format: SequenceFormat | str | None = None,
    prompt: str | None = None,
    lora_alpha: float | None = None,
) -> MergedModel:
    """The base `version` with the trained weights merged into it.

    Args:
        scratch: an existing folder for a copy of the frame while this runs, some GB for a 7B model.
        lora_alpha: alpha of the adapters; None: the run's, 16 where its settings are not beside the weights.
        dtype: of the weights written; None: the run's precision, else as the base is stored.
        Others: as for `load_model`; where they are None, what the run says.

    Raises:
        FileNotFoundError, ValueError: something is absent or does not fit; the message names the flag.
    """
    base = open_checkpoint(local_folder(version, flag="--version"))
    if not isinstance(base, WholeModel):
        raise UserError(
            f"--version {version} is {base.kind}; pass it as --weight, and the model that it started from as "
            "--version"
        )
    logger.info("%s: %s", base.path, base.kind)
    settings = trained.settings
    vision_tower = vision_tower or settings.place_of("vision_tower")
    sam = sam or settings.place_of("vision_pretrained")
    dtype = dtype or settings.dtype
    format = format or settings.format or released.training_format(trained.weights, base.path)
    check_space(scratch, base.stored, sam, dtype)
    with writing(scratch):
        temporary = tempfile.TemporaryDirectory(prefix=".frame-", dir=scratch)
    with temporary as place:
        copy = Path(place) / base.path.name
        with writing(place, shown=scratch):
            write_frame(base.path, base.stored, copy)
        try:
            with _without_remarks():
                frame, processor = load_model(
                    copy,
                    vision_tower=vision_tower,
                    sam=sam,
                    dtype=dtype,
                    format=format,
                    prompt=prompt or settings.prompt,
                    mask_head=mask_head_of(trained),
                    **settings.image_tokens,
                )
        except (UserError, FileNotFoundError) as error:
            raise type(error)(str(error).replace(str(copy), str(base.path))) from error
    take_settings(frame, settings)
    if getattr(processor.tokenizer, "vocab_file", None):  # copied when the tokenizer is saved
        processor.tokenizer.vocab_file = str(base.path / Path(processor.tokenizer.vocab_file).name)
    merged = MergedModel(base, frame)
    merged.apply(trained, frame, lora_alpha=lora_alpha)
    return merged


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Warnings only from below `model`: the frame that is loaded is not the model that the user gets."""
    package = logging.getLogger("model")
    before = package.level
    package.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        package.setLevel(before)


def save(
    merged: MergedModel,
    target: Path,
    *,
    card: str,
    layout: str = "lasagna",
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Writes the folder that `load_model` reads, reads it back, and gives it its name only then.

    Args:
        card: README.md of the folder.
        layout: "lasagna", or "lisa" for the layout of the released code.
        shard_size: bytes of one file, and so of what is in memory at a time.
        progress: called with the bytes of every weight that was written or read back.

    Raises:
        WriteError: the disk is full or fails; nothing is left behind.
        UserError: what was written reads back differently.
    """
    sizes = merged.sizes
    require_space(target.parent, sum(sizes.values()))
    with finished_folder(target) as folder:
        if layout == "lisa":
            # It has what is used there: configuration, processor, tower and weights.
            model = cast(LasagnaForConditionalGeneration, merged)
            hashes = write_released(model, folder, shard_size=shard_size, progress=progress)
        else:
            merged.config.save_pretrained(folder)
            merged.processor.save_pretrained(folder)
            hashes = write_shards(folder, sizes, merged.read, shard_size=shard_size, progress=progress)
        (folder / "README.md").write_text(card, encoding="utf-8")
        verify(folder, hashes, progress=progress)
        write_sums(folder)
        settings = folder / SETTINGS_FOLDER if layout == "lisa" else folder
        if LasagnaProcessor.from_pretrained(settings).token_ids != merged.processor.token_ids:
            raise UserError(f"the tokenizer of {target} is not what was written; is the disk sound?")
