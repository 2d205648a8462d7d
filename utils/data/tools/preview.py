"""Look at training samples as the model sees them: a contact sheet and a web page.

    python -m utils.data.tools.preview --dataset_dir ./dataset \\
      --dataset sem_seg --sem_seg_data ade20k --out OUT
    python -m utils.data.tools.preview --config configs/lasagna_7b.yaml \\
      --num_samples 24

Writes OUT/preview.png and OUT/index.html, a page that needs no other file, with
masks and learned tokens. Samples are 0, 1, 2, ... of the run with this seed:
drawn, shortened and tokenized by the code of training. Without data flags, all
data sets that exist are drawn from.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.common.command_line import answer_at_once, parse_config
from utils.config.tools import PreviewConfig
from utils.config.training import TrainConfig

if __name__ == "__main__":
    # Slow imports follow.
    answer_at_once("utils.data.tools.preview", PreviewConfig, __doc__, passed_over=TrainConfig)

import numpy as np
from PIL import Image, ImageDraw

from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.encoded import IGNORE_INDEX, Encoded
from model.text.sequence import ComplexQuery
from model.text.special_tokens import SEG_TOKENS, Special, Text
from utils.common.commands import command
from utils.common.files import write_png, write_whole
from utils.common.folder_lock import WRITING_LOCK, folder_lock
from utils.common.label_values import UNCLAIMED
from utils.common.logs import quiet, start_logging
from utils.common.paths import check_writable
from utils.data.base import Dataset
from utils.data.collate import LengthLimit
from utils.data.index.cache import use_index_cache
from utils.data.mixture import Mixture, recipe_of
from utils.data.shards.cache import use_shard_cache
from utils.data.tools.selection import entries_asked, entries_known, processor_for
from utils.data.types import Sample
from utils.reports.colours import MASK_COLOURS, Colour, class_colour
from utils.reports.drawing import GAP, INK, MARGIN, PALE, PAPER, LegendEntry, draw_legend, font, overlay
from utils.reports.pages import data_url, render

TEMPLATE = Path(__file__).with_name("preview.html.jinja")
CELL, LEGEND, LETTERS = 250, 210, 26  # of the contact sheet, in pixels; letters of a line of its legend
PAGE_IMAGE, THUMBNAIL = 560, 120  # longest side of images on the page, in pixels
MAX_WORDS = 6  # of an answer that name a mask


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample with the names and the colours of its masks."""

    index: int
    sample: Sample
    phrases: tuple[str, ...]  # one per mask
    colours: tuple[Colour, ...]  # one per mask

    @property
    def title(self) -> str:
        """Index, data set, size and number of masks."""
        height, width = self.sample.image.shape[:2]
        return f"{self.index}: {self.sample.dataset}, {width} x {height}, {len(self.phrases)} masks"

    def draw(self, longest_side: int, *, masks: bool) -> Image.Image:
        """The image, optionally with all masks over it, small ones in front, resized to `longest_side`."""
        image = self.sample.image
        if masks and self.phrases:
            image = overlay(image, frontmost(self.sample.masks), np.array(self.colours, dtype=np.uint8))
        return fit(Image.fromarray(image), longest_side, Image.Resampling.LANCZOS)


@command("utils.data.tools.preview")
def main(argv: Sequence[str] | None = None) -> int:
    # A file written for a run may hold all of its settings.
    config = parse_config(PreviewConfig, argv, about=__doc__, passed_over=TrainConfig)
    start_logging()
    check_writable(config.out, "--out")
    use_index_cache(config.index_cache)
    use_shard_cache(config.shard_cache, config.shard_cache_gb)
    processor = processor_for(config.version, config.sequence_format, config.prompt_template)
    mixture = build_mixture(config, processor)
    out = Path(config.out)
    with folder_lock(out, WRITING_LOCK, "--out"):  # else sheet and page may be those of two previews
        shown = [show(index, mixture[index]) for index in range(config.num_samples)]
        page = page_of(shown, processor, mixture.describe(), config)
        write_png(out / "preview.png", draw_contact_sheet(shown))
        write_whole(out / "index.html", page)
    print(f"{len(shown)} samples: {out / 'preview.png'}, {out / 'index.html'}")
    return 0


def build_mixture(config: PreviewConfig, processor: LasagnaProcessor) -> Mixture:
    """The mixture of the run, or one of all training sets in --dataset_dir at equal rates."""
    if entries := entries_asked(config):
        opened = [(entry.open(config.dataset_dir, training=True), entry.rate) for entry in entries]
    else:
        opened = [(dataset, 1.0) for dataset in training_sets_found(config.dataset_dir)]
    return Mixture(
        [dataset for dataset, _ in opened],
        [rate for _, rate in opened],
        recipe=recipe_of(config, config.sequence_format),
        seed=config.seed,
        fit=LengthLimit(processor, config.model_max_length),
    )


def training_sets_found(dataset_dir: str) -> list[Dataset]:
    """Every registered training set that exists in the folder."""
    found: list[Dataset] = []
    with quiet("utils"):
        for entry, training in entries_known():
            with suppress(FileNotFoundError):
                found += [entry.open(dataset_dir, training=True)] if training else []
    if not found:
        raise FileNotFoundError(
            f"--dataset_dir {dataset_dir} holds no data set to train on; `python -m utils.data.tools.check` says "
            "what was looked for"
        )
    return found


def show(index: int, sample: Sample) -> Shown:
    """A sample with names and colours: classes have the colours of reports, other masks one colour each."""
    phrases = [phrase for conversation in sample.conversations for phrase in phrases_of(conversation)]
    is_query = [
        isinstance(conversation, ComplexQuery)
        for conversation in sample.conversations
        for _ in range(conversation.num_seg)
    ]
    colours = [
        class_colour(phrase) if named else MASK_COLOURS[number % len(MASK_COLOURS)]
        for number, (phrase, named) in enumerate(zip(phrases, is_query, strict=True))
    ]
    return Shown(index=index, sample=sample, phrases=tuple(phrases), colours=tuple(colours))


def phrases_of(conversation: Conversation) -> Iterator[str]:
    """The name of each mask of a conversation: its class, the words before it, or the question that it answers."""
    if isinstance(conversation, ComplexQuery):
        yield from (name for name in conversation.answered if name in conversation.present)
        return
    for question, answer in zip(conversation.turns[::2], conversation.turns[1::2], strict=False):
        words = words_before_masks(answer.text)
        yield from [str(question)] if len(words) == 1 else (each or str(question) for each in words)


def words_before_masks(answer: Text) -> list[str]:
    """For each mask of an answer, the last words between it and the mask or the sentence before it."""
    phrases, words = [], ""
    for piece in answer:
        if isinstance(piece, Special) and piece in SEG_TOKENS:
            said = re.split(r"[.,;:!?]|\band\b", words.rstrip(" .,;:!?"))[-1].split()
            phrases.append(" ".join(said[-MAX_WORDS:]))
            words = ""
        else:
            words += piece
    return phrases


def frontmost(masks: np.ndarray) -> np.ndarray:
    """(num, height, width) masks -> (height, width) int64: the mask in front at each pixel, or UNCLAIMED."""
    labels = np.full(masks.shape[1:], UNCLAIMED)
    for number in np.argsort(-masks.astype(bool).sum(axis=(1, 2)), kind="stable"):
        labels[masks[number] > 0] = number
    return labels


def fit(image: Image.Image, longest_side: int, resample: Image.Resampling) -> Image.Image:
    """The image resized to `longest_side`."""
    scale = longest_side / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height), resample)


# ------------------------------------------------------------------------------------ the contact sheet


def draw_contact_sheet(shown: Sequence[Shown]) -> Image.Image:
    """Two samples per row: image, image with masks, and a legend."""
    columns = 1 if len(shown) == 1 else 2
    tile = (2 * (CELL + GAP) + LEGEND, CELL + 24)
    num_rows = -(-len(shown) // columns)
    sheet = Image.new(
        "RGB",
        (
            columns * (tile[0] + MARGIN) + MARGIN,
            num_rows * (tile[1] + GAP) + 2 * MARGIN - GAP,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(shown):
        left = MARGIN + number % columns * (tile[0] + MARGIN)
        top = MARGIN + number // columns * (tile[1] + GAP)
        draw.text((left, top), one.title, font=font(14), fill=INK)
        for place, masks in enumerate((False, True)):
            sheet.paste(one.draw(CELL, masks=masks), (left + place * (CELL + GAP), top + 22))
        x = left + 2 * (CELL + GAP)
        draw_legend(draw, (x, top + 22, x + LEGEND, top + tile[1]), list(legend_of(one)))
        draw.line((left, top - 3, left + tile[0], top - 3), fill=PALE)
    return sheet


def legend_of(one: Shown) -> Iterator[LegendEntry]:
    """The name of each mask, in two lines if it is long; the question of a sample without masks."""
    for phrase, colour in zip(one.phrases, one.colours, strict=True):
        first, *rest = textwrap.wrap(phrase, LETTERS)
        yield LegendEntry(name=first, colour=colour)
        yield LegendEntry(name=" ".join(rest))
    if not one.phrases:
        yield LegendEntry(name=str(one.sample.conversations[0].turns[0]))


# --------------------------------------------------------------------------------------------- the page


def page_of(
    shown: Sequence[Shown], processor: LasagnaProcessor, described: str, config: PreviewConfig
) -> str:
    """The HTML page; `described` is the description of the mixture."""
    return render(
        TEMPLATE,
        tokenizer=config.version,
        prompt=processor.prompt,
        mixture=described,
        samples=[section_of(one, processor) for one in shown],
    )


def section_of(one: Shown, processor: LasagnaProcessor) -> dict[str, Any]:
    """The variables of the template for one sample."""
    drawn = {"image": False, "masks": True} if one.phrases else {"image": False}
    masks = zip(one.sample.masks, one.phrases, one.colours, strict=True)
    return {
        "title": one.title,
        "source": one.sample.source,
        "skipped": one.sample.skipped,
        "images": [(name, data_url(one.draw(PAGE_IMAGE, masks=over))) for name, over in drawn.items()],
        "masks": [
            {"url": thumbnail_of(mask), "phrase": phrase, "colour": colour} for mask, phrase, colour in masks
        ],
        "left_out": left_out_of(one.sample),
        "conversations": [
            {
                "tokens": list(tokens_of(encoded, processor)),
                "num_text_tokens": encoded.num_text_tokens,
                "num_learned": sum(label != IGNORE_INDEX for label in encoded.labels),
            }
            for encoded in one.sample.encoded
        ],
    }


def thumbnail_of(mask: np.ndarray) -> str:
    """A (height, width) mask as a small image in a data URL."""
    image = Image.fromarray((mask > 0).astype(np.uint8) * 255)
    return data_url(fit(image, THUMBNAIL, Image.Resampling.BOX), "PNG")


def left_out_of(sample: Sample) -> str:
    """What was left out of a sample to fit the maximum length; "" if nothing."""
    if not sample.classes_left_out and not sample.conversations_left_out:
        return ""
    return (
        f"left out to fit --model_max_length: {sample.classes_left_out} absent classes, "
        f"{sample.conversations_left_out} conversations"
    )


def tokens_of(encoded: Encoded, processor: LasagnaProcessor) -> Iterator[dict[str, Any]]:
    """The tokens of a conversation, with one token for the image."""
    tokenizer = processor.tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    image_seen = False
    for index, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if index == processor.token_ids.image and image_seen:
            continue
        image_seen |= index == processor.token_ids.image
        kinds = ["t"] + ["learned"] * (label != IGNORE_INDEX) + ["special"] * (index in special)
        text = readable(str(tokenizer.convert_ids_to_tokens(index)))
        yield {"id": index, "kinds": " ".join(kinds), "text": text}


def readable(token: str) -> str:
    """A token as readable text, without the white-space marks of sentencepiece and GPT-2."""
    return token.replace("▁", " ").replace("Ġ", " ").replace("<0x0A>", "⏎\n").replace("Ċ", "⏎\n")


if __name__ == "__main__":
    sys.exit(main())
