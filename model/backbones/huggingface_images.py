"""Images for a Hugging Face image-text-to-text model, by the image processor that comes with it.

Each family resizes, tiles and writes its placeholder in its own way: Qwen keeps the aspect ratio and gives one grid
of cells, InternVL and SmolVLM cut tiles and add the whole image, Gemma squashes. All that is in the family's
processor; here it is asked for one image at a time, so that the workers of the loader can do it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionProcessor, PreTrainedTokenizerBase

from model.backbones.base import PreparedImage
from model.backbones.base_processor import MAX_IMAGE_TOKENS, BaseProcessor, processed, read_processor
from model.errors import UserError
from model.text.placeholder import Placeholder
from model.text.special_tokens import Special, Text
from model.text.templates import OWN_PROMPT, OwnChatTemplate, special_pieces
from model.text.tokens import encode_text
from model.token_grid import TokenGrid

FOLDER = "base_processor"  # below a model's folder: the processor of its base
PIXELS = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")


class HuggingFaceImages:
    """See `ImageReader`."""

    def __init__(self, base: BaseProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        """`tokenizer` is the model's, with the base's special tokens."""
        self.processor, self.tokenizer = base.processor, tokenizer
        self._example = base.placeholder

    @property
    def placeholder(self) -> Placeholder | None:
        """See `ImageReader`: the number of tokens depends on the image."""
        return None

    @cached_property
    def template(self) -> OwnChatTemplate:
        """The base's chat template, around the text that its placeholder begins and ends with."""
        before, _, after = self._pieces(self._example)
        return OwnChatTemplate(image_token=self.processor.image_token, image_before=before, image_after=after)

    @cached_property
    def image_token(self) -> str:
        """The token that features replace: nearly all of the placeholder."""
        _, inner, _ = self._pieces(self._example)
        [(token, _)] = Counter(piece for piece in inner if isinstance(piece, Special)).most_common(1)
        return str(token)

    def prepare(self, image: np.ndarray, *, fast: bool = False) -> PreparedImage:
        """See `ImageReader`; these processors resize as they do, whatever `fast` says.

        Raises:
            UserError: the processor does not take an image of this shape.
        """
        found = self._processed(image)
        _, inner, _ = self._pieces(self.processor.replace_image_token(found, 0))
        ids: list[int] = []
        for piece in inner:
            ids += [self._id(piece)] if isinstance(piece, Special) else encode_text(self.tokenizer, (piece,))
        num_tokens = ids.count(self._id(self.image_token))
        if num_tokens > MAX_IMAGE_TOKENS:
            height, width = image.shape[:2]
            raise UserError(
                f"an image of {width} x {height} pixels has {num_tokens:,} image tokens, of at most "
                f"{MAX_IMAGE_TOKENS:,}; pass --max_image_tokens"
            )
        return PreparedImage(
            pixels={name: found[name] for name in PIXELS if name in found},
            placeholder=Placeholder(ids=tuple(ids), num_image_tokens=num_tokens, cells=self._cells(found)),
            grid=self._grid(found, num_tokens, image),
        )

    def collate(self, images: Sequence[PreparedImage]) -> dict[str, Tensor]:
        """See `ImageReader`: tiles or patches one after the other, or images padded to as many tiles."""
        names = images[0].pixels
        in_tiles = images[0].pixels["pixel_values"].ndim == 5  # (1, tiles, 3, height, width)
        joined = {}
        for name in names:
            values = [image.pixels[name] for image in images]
            if in_tiles and name in ("pixel_values", "pixel_attention_mask"):
                most = max(value.shape[1] for value in values)
                values = [_padded(value, most) for value in values]
            joined[name] = torch.cat(values)
        return joined

    def save(self, folder: Path) -> dict[str, Any]:
        """See `ImageReader`."""
        self.processor.save_pretrained(folder / FOLDER)
        return {"base_processor": FOLDER}

    @classmethod
    def load(cls, folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> HuggingFaceImages:
        """What `save` wrote; `name` is its entry of processor_config.json."""
        if name != FOLDER:
            raise UserError(f"{folder}/processor_config.json: base_processor is {name!r}; it is {FOLDER!r}")
        return cls(read_processor(folder / FOLDER), tokenizer)

    def limit(self, min_tokens: int | None, max_tokens: int | None) -> None:
        """See `ImageReader`."""
        if min_tokens is None and max_tokens is None:
            return
        reader = self.processor.image_processor
        if hasattr(reader, "merge_size") and hasattr(reader, "patch_size"):  # the Qwen family: an area
            area = (reader.patch_size * reader.merge_size) ** 2
            size = {name: getattr(reader.size, name) for name in ("shortest_edge", "longest_edge")}
            if min_tokens is not None:
                size["shortest_edge"] = min_tokens * area
            if max_tokens is not None:
                size["longest_edge"] = max_tokens * area
            if size["shortest_edge"] > size["longest_edge"]:
                low, high = (value // area for value in size.values())
                raise UserError(
                    f"--min_image_tokens {low} is more than --max_image_tokens {high}; lower the first"
                )
            reader.size = type(reader.size)(**size)
            return
        if min_tokens is not None:
            raise UserError(
                f"--min_image_tokens is of the Qwen family; a {type(reader).__name__} has none: leave it out"
            )
        assert max_tokens is not None
        self._limit_tiles(max_tokens)

    def _limit_tiles(self, max_tokens: int) -> None:
        """As many tiles as `max_tokens` allow, the whole image among them."""
        reader, each = self.processor.image_processor, getattr(self.processor, "image_seq_length", None)
        each = each or getattr(self.processor, "image_seq_len", None)
        if each and max_tokens < each:
            raise UserError(
                f"--max_image_tokens {max_tokens} is less than the {each} tokens of one tile; raise it"
            )
        if each and hasattr(reader, "max_patches"):  # InternVL; a thumbnail comes on top
            reader.max_patches = max(1, max_tokens // each - 1)
            reader.min_patches = min(reader.min_patches, reader.max_patches)
        elif each and hasattr(reader, "max_image_size"):  # SmolVLM, Idefics3
            side = max(1, math.isqrt(max(1, max_tokens // each - 1)))
            tile = reader.max_image_size["longest_edge"]
            reader.size = type(reader.size)(longest_edge=min(side * tile, reader.size["longest_edge"]))
        else:
            raise UserError(
                f"--max_image_tokens: a {type(reader).__name__} has no such setting; leave it out"
            )

    # ------------------------------------------------------------------------------------------- inside

    def _processed(self, image: np.ndarray) -> Any:
        try:
            return processed(self.processor, image)
        except ValueError as problem:  # such as an aspect ratio above 200
            height, width = image.shape[:2]
            raise UserError(
                f"an image of {width} x {height} pixels cannot be prepared for this model: {problem}"
            ) from problem

    def _pieces(self, placeholder: str) -> tuple[str, Text, str]:
        """An image's placeholder: plain text, special tokens and what is between them, plain text."""
        pieces = list(special_pieces(placeholder, self._special))
        before = pieces.pop(0) if not isinstance(pieces[0], Special) else ""
        after = pieces.pop() if not isinstance(pieces[-1], Special) else ""
        return before, tuple(pieces), after

    @cached_property
    def _special(self) -> list[str]:
        return [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def _cells(self, found: Any) -> tuple[int, int] | None:
        """Rows and columns of the image's tokens, where positions have three axes: in the Qwen family."""
        if "image_grid_thw" not in found:
            return None
        merge = self.processor.image_processor.merge_size
        _, rows, columns = found["image_grid_thw"][0].tolist()
        return rows // merge, columns // merge

    def _grid(self, found: Any, num_tokens: int, image: np.ndarray) -> TokenGrid:
        """The tokens that show the whole image: all or, where it is cut into tiles, those of its thumbnail."""
        size = self._cells(found)
        tokens = None
        if size is None:
            each = getattr(self.processor, "image_seq_length", None) or getattr(
                self.processor, "image_seq_len", None
            )
            # OneVision has the whole image first, as large as one tile of its tower; others have it last.
            is_first = isinstance(self.processor, LlavaOnevisionProcessor)
            count = min(self.processor.num_image_tokens if is_first else each or num_tokens, num_tokens)
            side = math.isqrt(count)
            size = (side, side)
            if count < num_tokens:
                tokens = tuple(range(side * side) if is_first else range(num_tokens - count, num_tokens))
        height, width = image.shape[:2]
        return TokenGrid(size=size, region=(0, 0, height, width), tokens=tokens)


def _padded(value: Tensor, num_tiles: int) -> Tensor:
    """(1, tiles, ...) with tiles of zeros behind."""
    missing = value.new_zeros(1, num_tiles - value.shape[1], *value.shape[2:])
    return torch.cat([value, missing], dim=1)


def images_of_base(
    folder: Path, family: str, base: BaseProcessor, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> HuggingFaceImages:
    """The images' part of the processor of a base that is no LLaVA, which is prompted with its own template.

    Args:
        folder, family: where the base is, and the `model_type` of its config.json.
        base: what `read_processor` found there; `tokenizer` gets its chat template, if it has none.
        prompt: the name of the prompt asked for.

    Raises:
        UserError: it has no chat template, or another prompt is asked for.
    """
    if prompt != OWN_PROMPT:
        raise UserError(
            f"prompt {prompt!r} is LLaVA's; a {family} is prompted with its own chat template: leave --conv_type out"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = base.processor.chat_template
    if tokenizer.chat_template is None:
        raise UserError(
            f"{folder} has no chat template, with which a {family} is prompted; copy chat_template.jinja from where "
            "the weights come from, or take the Instruct model"
        )
    return HuggingFaceImages(base, tokenizer)
