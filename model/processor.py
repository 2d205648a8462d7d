"""LasagnaProcessor: the model's inputs from images and text, and text from token ids; saved in the model's folder.

Images stay uint8. They are resized here with Pillow, as CLIP and SAM were trained, and scaled, normalised and padded
in the model, on its device.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.backbones.base import ImageReader
from model.backbones.clip_images import ClipImages
from model.backbones.huggingface_images import HuggingFaceImages
from model.batching import (
    check_rows,
    join,
    pack_images,
    pad_images,
    pad_packed,
    pad_rows,
    pad_to_multiple,
    with_masks,
)
from model.decoders.transform import LONGEST_SIDE, ImageTransform
from model.errors import UserError
from model.files import read_json
from model.inputs import ImageInputs, ModelInputs, RowInputs
from model.text.answer_plan import AnswerPlan, plan_answer
from model.text.conversation import Conversation, Turn
from model.text.encoded import Encoded, encode_conversation, encode_with_place
from model.text.format import SequenceFormat
from model.text.generated import encode_as_generated
from model.text.templates import PROMPTS
from model.text.tokenizer_files import load_tokenizer, save_tokenizer
from model.text.tokens import TokenIds, decode_pieces, decode_text, token_ids, wanted_tokens

FILE_NAME = "processor_config.json"
# Entries of the file, beside the prompt; of those that depend on the base, the first must be there.
SETTINGS = ("format", "sam_image_size")
OF_LLAVA, OF_ANOTHER_BASE = ("num_image_tokens", "image_aspect_ratio"), ("base_processor",)
MAX_SIDE = 8192  # pixels of an image for SAM; the published one has 1024


@dataclass(kw_only=True)
class LasagnaProcessor:
    """Converts images and text to the model's input tensors, and generated token ids to text."""

    tokenizer: PreTrainedTokenizerBase
    images: ImageReader  # for the language model
    sam_image_size: int  # side of the mask decoder's input, pixels
    prompt: str = "llava_v1"
    format: SequenceFormat
    sam_resize: str = LONGEST_SIDE  # how an image is resized for the mask decoder, see `ImageTransform`

    def __post_init__(self) -> None:
        if type(self.sam_image_size) is not int or not 1 <= self.sam_image_size <= MAX_SIDE:
            raise UserError(f"sam_image_size is {self.sam_image_size!r}; it is a number from 1 to {MAX_SIDE}")
        if not isinstance(self.prompt, str) or self.prompt not in PROMPTS:
            raise UserError(f"unknown prompt {self.prompt!r}; known: {', '.join(sorted(PROMPTS))}")
        _ = self.sam_transform  # checks its settings
        template = self.images.template
        self.token_ids: TokenIds = token_ids(
            self.tokenizer,
            self.format,
            self.images.image_token,
            None if template is None else template.end_token(self.tokenizer),
        )

    @property
    def sam_transform(self) -> ImageTransform:
        """How an image becomes the mask decoder's input."""
        return ImageTransform(self.sam_image_size, self.sam_resize)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save tokenizer, CLIP settings and the processor's own settings in a model folder."""
        folder = Path(folder)
        save_tokenizer(self.tokenizer, folder)
        settings = {
            "processor_class": type(self).__name__,
            "sam_image_size": self.sam_image_size,
            "sam_resize": self.sam_resize,
            "prompt": self.prompt,
            "format": self.format.to_dict(),
            **self.images.save(folder),
        }
        (folder / FILE_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LasagnaProcessor:
        """Load the processor of a folder that `save_pretrained` wrote."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {FILE_NAME}; pass a folder that save_pretrained wrote")
        settings = read_json(path)
        settings.pop("processor_class", None)
        own = OF_ANOTHER_BASE if "base_processor" in settings else OF_LLAVA
        known, needed = {"prompt", "sam_resize", *SETTINGS, *own}, {*SETTINGS, own[0]}
        if not needed <= settings.keys() <= known:
            raise UserError(
                f"{path} holds {', '.join(settings) or 'nothing'} and must hold {', '.join(sorted(known))}; "
                "copy it again"
            )
        settings["format"] = SequenceFormat.from_dict(settings["format"])
        tokenizer = load_tokenizer(folder)
        images = read_images(Path(folder), settings, tokenizer)
        return cls(tokenizer=tokenizer, images=images, **settings)

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that the format adds to a base's vocabulary, without `<image>`, whose row is unused."""
        wanted = wanted_tokens(self.format, for_llava=self.images.template is None)
        names = [token.content for token in wanted if token.content != self.images.image_token]
        return tuple(self.tokenizer.convert_tokens_to_ids(names))

    def sam_image(self, image: np.ndarray, *, fast: bool = False) -> np.ndarray:
        """(height, width, 3) uint8 -> (3, h, w) uint8 for the mask decoder, not padded.

        Equal to segment_anything's `ResizeLongestSide`, or the square of SAM 2's image processor; with `fast`, within
        two grey levels of it.
        """
        _check_image(image)
        return self.sam_transform(image, fast=fast)

    def encode(self, conversation: Conversation) -> Encoded:
        """Ids and labels of a conversation in this model's prompt template; see `Encoded.with_image`.

        Answers that `said` made are read by their own tokens.
        """
        return encode_as_generated(self._encode, conversation)

    def _encode(self, conversation: Conversation) -> Encoded:
        template, placeholder = self.images.template, self.images.placeholder
        if template is not None:
            return encode_with_place(self.tokenizer, conversation, template)
        assert placeholder is not None, "images of different lengths go with a template of their own"
        return encode_conversation(
            self.tokenizer,
            conversation,
            prompt=self.prompt,
            num_image_tokens=placeholder.num_image_tokens,
        )

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of generated ids, without special tokens other than SEG and NEG."""
        return decode_text(self.tokenizer, ids)

    def said(self, ids: Sequence[int]) -> Turn:
        """The turn of a conversation that a generated answer is: its tokens are kept, [SEG] stays [SEG]."""
        spoken = list(ids[:-1] if list(ids[-1:]) == [self.token_ids.eos] else ids)
        return Turn("assistant", decode_pieces(self.tokenizer, spoken), token_ids=tuple(ids))

    def mentions(self, ids: Sequence[int] | Tensor) -> tuple[tuple[str, bool], ...]:
        """(name, present?) for each SEG or NEG among generated ids; the masks are those of the present, in order."""
        return tuple(self.format.mentions(decode_pieces(self.tokenizer, ids)))

    def plan(self, classes: Sequence[str]) -> tuple[Conversation, AnswerPlan]:
        """The query for `classes` and the plan of its answer, for `decode_choices`."""
        conversation = Conversation.of(self.format.query(classes))
        return conversation, plan_answer(
            self.tokenizer, classes, self.format, prompt=self.prompt, template=self.images.template
        )

    def collate(
        self,
        images: Sequence[np.ndarray],
        conversations: Sequence[Conversation | Encoded],
        image_of_row: Sequence[int],
        *,
        masks: Sequence[np.ndarray] | None = None,
        padding_side: str = "right",
        fast_resize: bool = False,
        pack_rows: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int = 1,
        sam_needs: Collection[int] | None = None,
    ) -> ModelInputs:
        """A batch of images and conversations about them, as the model's inputs on the CPU.

        Args:
            images: (height, width, 3) uint8 arrays.
            conversations: one for each row, tokenized or not.
            image_of_row: for each conversation the index of its image.
            masks: for each image (number of its [SEG], height, width) uint8, in the order of the rows and of their
                [SEG]; without masks the batch has no labels.
            padding_side: "right" for training, "left" for generation.
            pack_rows: pack the conversations of an image into one row; see model/text/packing.py.
            max_length: maximum number of text tokens in a packed row, without image tokens; longer rows are split.
                None: one row for each image.
            pad_to_multiple_of: rows, and the number of positions with a label, are padded to a multiple of it.
            sam_needs: indices of the images to resize for SAM, in the order of `sam_images`; the embeddings of the
                others are cached. If empty, `sam_images` is None. Default: all images.
        """
        check_rows(conversations, image_of_row, len(images))
        owners = list(image_of_row)
        found = self.image_inputs(images, fast_resize, sam_needs)
        encoded = [
            (row if isinstance(row, Encoded) else self.encode(row)).with_image(found.placeholders[owner])
            for row, owner in zip(conversations, owners, strict=True)
        ]
        if pack_rows:
            if padding_side != "right":
                raise ValueError(f"packed rows are padded at the right, got padding_side={padding_side!r}")
            packed, owners = pack_images(encoded, owners, self.token_ids.image, max_length)
            rows = pad_packed(packed, self.token_ids.pad)
        else:
            rows = self.row_inputs(encoded, padding_side)
        if pad_to_multiple_of > 1:
            if padding_side != "right":
                raise ValueError(f"only rows padded at the right are made longer, got {padding_side!r}")
            rows = pad_to_multiple(rows, pad_to_multiple_of, self.token_ids.pad)
        inputs = self.join(rows, found, owners)
        if masks is None:
            return replace(inputs, labels=None)
        return with_masks(inputs, masks, pad_to_multiple_of)

    def row_inputs(self, encoded: Sequence[Encoded], side: str) -> RowInputs:
        """Ids, labels and attention mask (N, T) of one or more conversations, padded on the "left" or "right"."""
        return pad_rows(encoded, self.token_ids.pad, side)

    def join(self, rows: RowInputs, images: ImageInputs, image_of_row: Sequence[int]) -> ModelInputs:
        """Rows and their images as one batch, without ground truth masks."""
        return join(rows, images, image_of_row, self.token_ids)

    def image_inputs(
        self,
        images: Sequence[np.ndarray],
        fast_resize: bool = False,
        sam_needs: Collection[int] | None = None,
    ) -> ImageInputs:
        """The inputs of both image encoders for one or more images, with their sizes; arguments as in `collate`."""
        for image in images:
            _check_image(image)
        needed = range(len(images)) if sam_needs is None else sam_needs
        prepared = [self.images.prepare(image, fast=fast_resize) for image in images]
        sizes = tuple((image.shape[0], image.shape[1]) for image in images)
        return ImageInputs(
            vlm_images=self.images.collate(prepared),
            placeholders=tuple(image.placeholder for image in prepared),
            token_grids=tuple(image.grid for image in prepared),
            sam_images=pad_images([self.sam_image(images[index], fast=fast_resize) for index in needed]),
            resized_sizes=tuple(self.sam_transform.size(*size) for size in sizes),
            original_sizes=sizes,
        )


def read_images(folder: Path, settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> ImageReader:
    """The images' part of a processor; its entries are taken out of `settings`."""
    if (name := settings.pop("base_processor", None)) is not None:
        return HuggingFaceImages.load(folder, name, tokenizer)
    own: dict[str, Any] = {name: settings.pop(name) for name in OF_LLAVA if name in settings}
    return ClipImages.load(folder, own)


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a (height, width, 3) uint8 array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected a (height, width, 3) uint8 image, got {image.shape} {image.dtype}")
