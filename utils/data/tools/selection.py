"""The data sets that `check` and `preview` read: those of the flags, or all that exist."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil

from model.backbones.base import ImageReader
from model.backbones.base_processor import read_processor
from model.backbones.build import BACKBONES
from model.backbones.clip_images import ClipImages
from model.backbones.huggingface_images import images_of_base
from model.errors import UserError
from model.files import read_json
from model.folders import local_folder
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.templates import OWN_PROMPT
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens
from utils.config.data import DataConfig
from utils.config.tools import LookConfig
from utils.data.dataset_flags import SOURCE_RATES, check_data_flags, parse_dataset_flags
from utils.data.registry import DATASETS, Entry, parse_entry, parse_val_list, split_list, training_entries
from utils.data.val_datasets import ALL, FLAG, open_all


def entries_asked(config: LookConfig) -> tuple[Entry, ...]:
    """The training data sets that the flags name; empty if no flag is given. Raises UserError for unknown names."""
    asked = flags_asked(config)
    return () if asked is None else parse_dataset_flags(asked)


def flags_asked(config: LookConfig) -> LookConfig | None:
    """The data flags with training's defaults for those of stated sources; None if no flag is given."""
    stated = [source for source in SOURCE_RATES if getattr(config, f"{source}_data")]
    dataset = config.dataset or "||".join(stated)
    if not dataset:
        check_data_flags(config, SOURCE_RATES)
        return None
    defaults = {entry.name: str(entry.default) for entry in fields(DataConfig)}
    flags = [f"{source}_data" for source in SOURCE_RATES]
    data: dict[str, Any] = {flag: getattr(config, flag) or defaults[flag] for flag in flags}
    return replace(config, dataset=dataset, **data)


def entries_to_evaluate(text: str, dataset_dir: str | Path) -> list[Entry]:
    """The entries of --val_dataset_list, with `all` expanded as in an evaluation."""
    parts = split_list(text, FLAG, separator=",")
    named = ",".join(part for part in parts if part != ALL)
    entries = parse_val_list(named) if named else ()
    found = open_all(Path(dataset_dir)) if ALL in parts else ()
    return [*entries, *(parse_entry(text, FLAG) for text in found)]


def entries_known() -> list[tuple[Entry, bool]]:
    """Every registered data set, once for training and once for evaluation where it serves both."""
    entries = []
    for name, dataset in DATASETS.items():
        if dataset.train_split is not None:
            entries += [(entry, True) for entry in training_entries(name)]
        if dataset.val_split is not None:
            entries.append((Entry(name), False))
    return entries


def processor_for(version: str, format: SequenceFormat, prompt: str | None) -> LasagnaProcessor:
    """The processor of a model folder, or of a base that training would start from; weights are not read.

    The processor of a base is for text: the sizes of a LLaVA's images and of SAM's are not known without weights.
    """
    folder = local_folder(version, flag="--version")
    family = str(read_json(folder / "config.json").get("model_type"))
    if family == "lasagna":
        processor = LasagnaProcessor.from_pretrained(folder)
        if processor.format.name != format.name:
            raise UserError(
                f"--version {version} was trained with --format {processor.format.name}, not {format.name!r}"
            )
        return replace(processor, format=format)
    tokenizer = load_tokenizer(folder)
    is_llava = family not in BACKBONES or family == "llava"
    add_special_tokens(tokenizer, format, for_llava=is_llava)
    images: ImageReader = ClipImages(clip=CLIPImageProcessorPil(), num_image_tokens=1)
    if not is_llava:
        base = read_processor(folder)
        images = images_of_base(folder, family, base, tokenizer, prompt or OWN_PROMPT)
    return LasagnaProcessor(
        tokenizer=tokenizer,
        images=images,
        sam_image_size=1024,
        prompt=prompt or ("llava_v1" if is_llava else OWN_PROMPT),
        format=format,
    )
