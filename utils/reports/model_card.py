"""README.md of a merged model: what it is, what it was made from, how it was trained and measured, on which terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import LasagnaConfig
from utils.reports.report import Report
from utils.reports.tables import results_table

# What of a run's settings says where the model comes from. Folders and machines are nobody's business.
DATA = (
    "dataset", "sample_rates", "sem_seg_data", "sem_seg_rates", "refer_seg_data", "refer_seg_rates", "vqa_data",
    "vqa_rates", "reason_seg_data", "reason_seg_rates", "explanatory",
)  # fmt: skip
RECIPE = (
    "epochs", "steps_per_epoch", "batch_size", "grad_accumulation_steps", "lr", "warmup_steps", "beta1", "beta2",
    "weight_decay", "grad_clip", "ce_loss_weight", "bce_loss_weight", "dice_loss_weight", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "num_all_classes", "likely_negatives", "num_expressions", "num_questions",
    "random_classes_list", "sequence_augmentation", "order_following", "model_max_length", "precision", "seed",
)  # fmt: skip
UNKNOWN = "The settings of the training run did not come with its weights."


def model_card(
    name: str,
    base: str,
    config: LasagnaConfig,
    num_parameters: int,
    *,
    run: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> str:
    """The page, in Markdown.

    Args:
        name: of the model.
        base: what it was trained from; only the last part of a path is shown.
        run: settings of train_ds.py (run.yaml), empty where they are not known.
        report: what test_sem.py measured.
    """
    text = config.vlm_config.text_config
    facts = {
        "Base model": last_part(base),
        "Language model": f"{text.hidden_size} wide, {text.num_hidden_layers} layers",
        "Mask decoder": f"SAM, {config.sam_settings.image_size} px",
        "Prompt": f"`{config.prompt}`",
        "Sequence format": f"`{config.sequence_format['name']}`",
        "Parameters": f"{num_parameters:,}, {str(config.dtype).removeprefix('torch.')}",
    }
    run = run or {}
    return PAGE.format(
        name=name,
        facts=table(("", ""), facts.items()),
        data=settings_table(run, DATA),
        recipe=settings_table(run, RECIPE),
        results=results_of(report),
        licences=LICENCES,
    )


def table(headings: Sequence[str], rows: Any) -> str:
    """Markdown. Data set entries hold "|", which would end a cell."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def settings_table(run: Mapping[str, Any], names: Sequence[str]) -> str:
    """Those of `names` that the run says something about."""
    rows = [(name, f"`{without_folders(run[name])}`") for name in names if run.get(name) not in (None, "")]
    return table(("setting", "value"), rows) if rows else UNKNOWN


def without_folders(value: Any) -> Any:
    """`own_sem:/data/mine||refer_seg` -> `own_sem:mine||refer_seg`."""
    if not isinstance(value, str):
        return value
    return "||".join(
        f"{kind}:{last_part(folder)}" if folder else kind
        for kind, _, folder in (entry.partition(":") for entry in value.split("||"))
    )


def last_part(path: str) -> str:
    return Path(path).name or path


def results_of(report: Report | None) -> str:
    """What was measured, or that nothing was."""
    if report is None:
        return "No evaluation came with the weights; `test_sem.py` makes one."
    shown = results_table(report)
    protocol = ", ".join(f"{name}: {value}" for name, value in report.protocol.items())
    return f"{table(shown.headings, shown.rows)}\n\nProtocol: {protocol}."


LICENCES = """\
The merged weights contain those of the base model, so its terms apply to them, as do those of the training data:

- LLaMA and what is derived from it (Vicuna, LLaVA): the first LLaMA is for non-commercial research under its own
  licence, LLaMA 2 under the Llama 2 Community License. Say here which one the base model has.
- LLaVA's instruction data is CC BY-NC 4.0 and was made with GPT-4, whose terms of use apply to it.
- CLIP is under the MIT licence, SAM under the Apache License 2.0.
- Every data set named above has terms of its own."""

PAGE = """\
---
library_name: transformers
pipeline_tag: image-segmentation
license: other
tags: [lasagna, llava, segment-anything, referring-segmentation, semantic-segmentation]
---

# {name}

A LaSagnA model: it answers questions about a picture in words and draws a mask for every `[SEG]` in its
answer. Asked for a list of classes it also says which of them are *not* in the picture.

{facts}

The folder is complete: weights with the adapters merged, configuration, tokenizer and image processing.

```python
import numpy as np
from PIL import Image
from model.checkpoints.load import load_model

model, processor = load_model("{name}")
image = np.asarray(Image.open("picture.jpg").convert("RGB"))
found = model.segment(image, classes=["person", "tree", "dog"])
print(found.present_names, found.masks.shape)  # masks are logits: > 0 is inside
print(model.chat(image, "Where is the red car?").text)
```

## Data

{data}

## Recipe

{recipe}

## Results

{results}

## Licences

{licences}
"""
