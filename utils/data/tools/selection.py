"""What the commands `check` and `preview` look at: the flags of training, or all that is found."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from transformers import CLIPImageProcessorPil

from model.errors import UserError
from model.folders import local_folder
from model.processor import FILE_NAME, LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.tokens import add_special_tokens, load_tokenizer
from utils.common.settings import require_positive, setting
from utils.config.training import DATA, OUTPUT, DataConfig
from utils.data.registry import DATASETS, SOURCE_RATES, Entry, parse_dataset_flags


@dataclass(frozen=True, kw_only=True)
class LookConfig(DataConfig):
    """The data flags of training, empty unless stated."""

    dataset: str = setting("", "sources to look at", group=DATA, unset="whatever is found")
    sem_seg_data: str = setting("", "semantic data sets", group=DATA)
    refer_seg_data: str = setting("", "referring data sets", group=DATA)
    vqa_data: str = setting("", "data sets of questions answered in words", group=DATA)
    reason_seg_data: str = setting("", "reasoning data sets", group=DATA)
    num_samples: int = setting(50, "samples drawn from each data set", group=OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_samples")


def entries_asked(config: LookConfig) -> tuple[Entry, ...]:
    """The data sets to train on that flags name; none when no flag does. Raises ValueError for unknown names."""
    stated = [source for source in SOURCE_RATES if getattr(config, f"{source}_data")]
    dataset = config.dataset or "||".join(stated)
    if not dataset:
        return ()
    recipe = {entry.name: entry.default for entry in fields(DataConfig)}
    lists = {
        name: getattr(config, name) or recipe[name] for name in (f"{source}_data" for source in SOURCE_RATES)
    }
    return parse_dataset_flags(replace(config, dataset=dataset, **lists))


def entries_known() -> list[tuple[Entry, bool]]:
    """Every data set that has a reader, for training and for evaluation where it serves for both."""
    return [
        (Entry(name), training)
        for name, dataset in DATASETS.items()
        for training, split in ((True, dataset.train_split), (False, dataset.val_split))
        if split is not None
    ]


def processor_for(version: str, format: SequenceFormat, prompt: str) -> LasagnaProcessor:
    """The processor of a model folder or of a LLaVA that training would start from; weights are not read.

    For a LLaVA, picture sizes are not known here: text is what this processor is for.
    """
    folder = local_folder(version, flag="--version")
    if (folder / FILE_NAME).is_file():
        processor = LasagnaProcessor.from_pretrained(folder)
        if processor.format.name != format.name:
            raise UserError(
                f"--version {version} was trained with --format {processor.format.name}, not {format.name!r}"
            )
        return replace(processor, format=format)
    tokenizer = load_tokenizer(folder)
    add_special_tokens(tokenizer, format)
    return LasagnaProcessor(
        tokenizer=tokenizer,
        clip=CLIPImageProcessorPil(),
        sam_image_size=1024,
        num_image_tokens=1,
        prompt=prompt,
        format=format,
    )
