"""Make a model folder that stands alone from the weights of a training run.

    python merge_lora_weights_and_save_hf_model.py \\
      --version PATH_TO_LLaVA --weight runs/LaSagnA-7b/ckpt_model --save_path PATH_TO_SAVED_MODEL

--weight is a checkpoint folder of train_ds.py (read directly), or what zero_to_fp32.py made of it: a file or
a folder of shards. Where the run's own settings are beside the weights, base model, CLIP, SAM, LoRA alpha,
prompt and format need no flag.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.interop.training import RunSettings, apply_training_weights, read_run_settings
from model.lasagna import LasagnaForConditionalGeneration
from model.loading import load_model
from model.sequence import SequenceFormat
from utils.config import MergeConfig
from utils.distributed import dtype_of
from utils.logs import one_line, start_logging
from utils.settings import parse_config

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse_config(MergeConfig, argv)
        start_logging()
        target = free_folder(config.save_path)
        settings = read_run_settings(config.weight)
        model = load_base(config, settings)
        apply_training_weights(model, config.weight, lora_alpha=config.lora_alpha, tag=config.tag)
        write(model, target, card=model_card(target.name, base_of(config, settings), model))
        print(f"{target} is ready: python chat.py --version {target}")
    except (ValueError, FileNotFoundError) as problem:
        print(f"merge_lora_weights_and_save_hf_model.py: {one_line(problem)}", file=sys.stderr)
        return 2
    return 0


def free_folder(path: str) -> Path:
    """The folder to write, which must not hold anything yet: nobody's model is overwritten."""
    if not path:
        raise ValueError("--save_path says where the merged model goes")
    folder = Path(path)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"--save_path {path} exists; remove it or choose another name")
    return folder


def base_of(config: MergeConfig, settings: RunSettings) -> str:
    """The model that the run started from."""
    version = config.version or settings.run.get("version")
    if not version:
        raise ValueError(
            f"the run's settings are not beside {config.weight}; pass --version, the model that training "
            "started from"
        )
    return version


def load_base(config: MergeConfig, settings: RunSettings) -> LasagnaForConditionalGeneration:
    """The base model as it was when training started, before the first step."""
    stored_format = settings.config.get("sequence_format")
    model, _ = load_model(
        base_of(config, settings),
        vision_tower=config.vision_tower or settings.run.get("vision_tower"),
        vision_pretrained=config.vision_pretrained or settings.run.get("vision_pretrained"),
        dtype=dtype_of(config.precision),
        format=SequenceFormat.from_dict(stored_format) if stored_format else None,
        prompt=settings.config.get("prompt"),
    )
    return model


def write(model: LasagnaForConditionalGeneration, target: Path, *, card: str) -> None:
    """Writes the folder under another name first, so that what has the final name is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        model.save_pretrained(unfinished)
        readme = unfinished / "README.md"
        readme.write_text(card, encoding="utf-8")
        for file in unfinished.iterdir():  # safetensors writes files that only their owner may read
            file.chmod(readme.stat().st_mode)
        if target.exists():
            target.rmdir()  # empty, as checked
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def model_card(name: str, base: str, model: LasagnaForConditionalGeneration) -> str:
    """README.md of the folder: what it is, what it was made from, how it is used."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    facts: dict[str, Any] = {
        "Base model": Path(base).name,
        "Language model": f"{model.config.vlm_config.text_config.hidden_size} wide, "
        f"{model.config.vlm_config.text_config.num_hidden_layers} layers",
        "Mask decoder": f"SAM, {model.config.sam_settings.image_size} px",
        "Prompt": f"`{model.config.prompt}`",
        "Sequence format": f"`{model.config.sequence_format['name']}`",
        "Parameters": f"{num_parameters:,}, {str(model.dtype).removeprefix('torch.')}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return CARD.format(name=name, table=table)


CARD = """\
---
library_name: transformers
pipeline_tag: image-segmentation
tags: [lasagna, llava, segment-anything, referring-segmentation, semantic-segmentation]
---

# {name}

A LaSagnA model: it answers questions about a picture in words and draws a mask for every `[SEG]` in its
answer. Asked for a list of classes it also says which of them are *not* in the picture.

| | |
|---|---|
{table}

The folder is complete: weights with the adapters merged, configuration, tokenizer and image processing.

```python
import numpy as np
from PIL import Image
from model.loading import load_model

model, processor = load_model("{name}")
image = np.asarray(Image.open("picture.jpg").convert("RGB"))
found = model.segment(image, classes=["person", "tree", "dog"])
print(found.present_names, found.masks.shape)  # masks are logits: > 0 is inside
print(model.chat(image, "Where is the red car?").text)
```

The licences of the base model, of SAM and of the training data apply.
"""


if __name__ == "__main__":
    sys.exit(main())
