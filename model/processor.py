"""LasagnaProcessor: the model's inputs from images and text, and text from token ids; saved in the model's folder.

Images stay uint8. They are resized here with Pillow, as CLIP and SAM were trained, and scaled, normalised and padded
in the model, on its device.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from model.batching import check_rows, join, pack_images, pad_images, pad_packed, pad_rows, with_masks
from model.decoders.transform import LONGEST_SIDE, ImageTransform
from model.errors import UserError
from model.files import read_json
from model.huggingface import from_pretrained
from model.image_resize import resize_fast
from model.inputs import ImageInputs, ModelInputs, RowInputs
from model.text.answer_plan import AnswerPlan, plan_answer
from model.text.conversation import PROMPTS, Conversation, Encoded, encode_conversation
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer, save_tokenizer
from model.text.tokens import TokenIds, decode_pieces, decode_text, token_ids

FILE_NAME = "processor_config.json"
ASPECT_RATIOS = ("square", "pad")
MAX_SIDE = 8192  # pixels of an image for SAM or CLIP; the published ones have 1024 and 336
MAX_IMAGE_TOKENS = 65_536


@dataclass(kw_only=True)
class LasagnaProcessor:
    """Converts images and text to the model's input tensors, and generated token ids to text."""

    tokenizer: PreTrainedTokenizerBase
    clip: CLIPImageProcessorPil
    sam_image_size: int  # side of the mask decoder's input, pixels
    num_image_tokens: int  # patch features of one image in the language model's input
    prompt: str = "llava_v1"
    format: SequenceFormat
    sam_resize: str = LONGEST_SIDE  # how an image is resized for the mask decoder, see `ImageTransform`
    image_aspect_ratio: str = "square"  # "square" crops for CLIP (LLaVA v1), "pad" pads first (LLaVA 1.5)

    def __post_init__(self) -> None:
        for name, most in (("sam_image_size", MAX_SIDE), ("num_image_tokens", MAX_IMAGE_TOKENS)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise UserError(f"{name} is {value!r}; it is a number from 1 to {most}")
        if not isinstance(self.prompt, str) or self.prompt not in PROMPTS:
            raise UserError(f"unknown prompt {self.prompt!r}; known: {', '.join(sorted(PROMPTS))}")
        if self.image_aspect_ratio not in ASPECT_RATIOS:
            raise UserError(
                f"unknown image_aspect_ratio {self.image_aspect_ratio!r}; known: {', '.join(ASPECT_RATIOS)}"
            )
        _ = self.sam_transform  # checks its settings
        self.token_ids: TokenIds = token_ids(self.tokenizer, self.format)

    @property
    def sam_transform(self) -> ImageTransform:
        """How an image becomes the mask decoder's input."""
        return ImageTransform(self.sam_image_size, self.sam_resize)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save tokenizer, CLIP settings and the processor's own settings in a model folder."""
        folder = Path(folder)
        save_tokenizer(self.tokenizer, folder)
        self.clip.save_pretrained(folder)
        settings = {
            "processor_class": type(self).__name__,
            "sam_image_size": self.sam_image_size,
            "sam_resize": self.sam_resize,
            "num_image_tokens": self.num_image_tokens,
            "prompt": self.prompt,
            "format": self.format.to_dict(),
            "image_aspect_ratio": self.image_aspect_ratio,
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
        stored = [entry for entry in fields(cls) if entry.init and entry.name not in ("tokenizer", "clip")]
        known = {entry.name for entry in stored}
        needed = {entry.name for entry in stored if entry.default is MISSING}
        if not needed <= settings.keys() <= known:
            raise UserError(
                f"{path} holds {', '.join(settings) or 'nothing'} and must hold {', '.join(sorted(known))}; "
                "copy it again"
            )
        settings["format"] = SequenceFormat.from_dict(settings["format"])
        clip = from_pretrained(CLIPImageProcessorPil, folder)
        check_clip(clip, folder)
        return cls(tokenizer=load_tokenizer(folder), clip=clip, **settings)

    def clip_image(self, image: np.ndarray, *, fast: bool = False) -> np.ndarray:
        """(height, width, 3) uint8 -> (3, size, size) uint8: resized and cropped for CLIP.

        Equal to the original processor, which resizes with Pillow; with `fast`, within two grey levels of it.
        """
        _check_image(image)
        if self.image_aspect_ratio == "pad":
            image = pad_to_square(image, self.clip.image_mean)
        shortest = self.clip.size.get("shortest_edge")
        fast = fast and shortest is not None and self.clip.resample == Image.Resampling.BICUBIC
        if fast:
            short, long = min(image.shape[:2]), max(image.shape[:2])
            height, width = (
                shortest if side == short else int(shortest * long / short) for side in image.shape[:2]
            )
            image = resize_fast(image, (height, width), "bicubic")
        pixels = self.clip(
            image,
            do_resize=not fast,
            do_rescale=False,
            do_normalize=False,
            input_data_format="channels_last",
            return_tensors="np",
        )["pixel_values"][0]
        assert pixels.dtype == np.uint8
        return pixels

    def sam_image(self, image: np.ndarray, *, fast: bool = False) -> np.ndarray:
        """(height, width, 3) uint8 -> (3, h, w) uint8 for the mask decoder, not padded.

        Equal to segment_anything's `ResizeLongestSide`, or the square of SAM 2's image processor; with `fast`, within
        two grey levels of it.
        """
        _check_image(image)
        return self.sam_transform(image, fast=fast)

    def encode(self, conversation: Conversation) -> Encoded:
        """Ids and labels of a conversation in this model's prompt template."""
        return encode_conversation(
            self.tokenizer, conversation, prompt=self.prompt, num_image_tokens=self.num_image_tokens
        )

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of generated ids, without special tokens other than SEG and NEG."""
        return decode_text(self.tokenizer, ids)

    def mentions(self, ids: Sequence[int] | Tensor) -> tuple[tuple[str, bool], ...]:
        """(name, present?) for each SEG or NEG among generated ids; the masks are those of the present, in order."""
        return tuple(self.format.mentions(decode_pieces(self.tokenizer, ids)))

    def plan(self, classes: Sequence[str]) -> tuple[Conversation, AnswerPlan]:
        """The query for `classes` and the plan of its answer, for `decode_choices`."""
        conversation = Conversation.of(self.format.query(classes))
        return conversation, plan_answer(self.tokenizer, classes, self.format, prompt=self.prompt)

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
            sam_needs: indices of the images to resize for SAM, in the order of `sam_images`; the embeddings of the
                others are cached. If empty, `sam_images` is None. Default: all images.
        """
        check_rows(conversations, image_of_row, len(images))
        encoded = [row if isinstance(row, Encoded) else self.encode(row) for row in conversations]
        owners = list(image_of_row)
        if pack_rows:
            if padding_side != "right":
                raise ValueError(f"packed rows are padded at the right, got padding_side={padding_side!r}")
            packed, owners = pack_images(encoded, owners, self.token_ids.image, max_length)
            rows = pad_packed(packed, self.token_ids.pad)
        else:
            rows = self.row_inputs(encoded, padding_side)
        inputs = self.join(rows, self.image_inputs(images, fast_resize, sam_needs), owners)
        return replace(inputs, labels=None) if masks is None else with_masks(inputs, masks)

    def row_inputs(self, encoded: Sequence[Encoded], side: str) -> RowInputs:
        """Ids, labels and attention mask (N, T) of one or more conversations, padded on the "left" or "right"."""
        return pad_rows(encoded, self.token_ids.pad, side)

    def join(self, rows: RowInputs, images: ImageInputs, image_of_row: Sequence[int]) -> ModelInputs:
        """Rows and their images as one batch, without ground truth masks."""
        return join(rows, images, image_of_row, self.token_ids.seg)

    def image_inputs(
        self,
        images: Sequence[np.ndarray],
        fast_resize: bool = False,
        sam_needs: Collection[int] | None = None,
    ) -> ImageInputs:
        """The inputs of both image encoders for one or more images, with their sizes; arguments as in `collate`."""
        needed = range(len(images)) if sam_needs is None else sam_needs
        clip_images = np.stack([self.clip_image(image, fast=fast_resize) for image in images])
        sizes = tuple((image.shape[0], image.shape[1]) for image in images)
        return ImageInputs(
            clip_images=torch.from_numpy(clip_images),
            sam_images=pad_images([self.sam_image(images[index], fast=fast_resize) for index in needed]),
            resized_sizes=tuple(self.sam_transform.size(*size) for size in sizes),
            original_sizes=sizes,
        )


def pad_to_square(image: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """(height, width, 3) uint8 -> centred in a square of the mean colour, as in LLaVA-1.5."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [int(value * 255) for value in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a (height, width, 3) uint8 array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected a (height, width, 3) uint8 image, got {image.shape} {image.dtype}")


def check_clip(clip: CLIPImageProcessorPil, folder: str | Path) -> None:
    """UserError unless the settings of a CLIP image processor say how an image is resized, within `MAX_SIDE`."""
    for name in ("size", "crop_size"):
        try:
            sides = [side for side in dict(getattr(clip, name)).values() if side is not None]
        except (TypeError, ValueError):
            sides = [getattr(clip, name)]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            raise UserError(
                f"{folder}/preprocessor_config.json: {name} is {sides}; its sides are numbers from 1 to {MAX_SIDE}"
            )
    try:
        Image.Resampling(clip.resample)
    except ValueError:
        raise UserError(
            f"{folder}/preprocessor_config.json: resample {clip.resample!r} is none of Pillow's, 0 to 5"
        ) from None
    for name in ("image_mean", "image_std"):
        values = getattr(clip, name)
        if not isinstance(values, list | tuple) or not all(
            isinstance(value, int | float) for value in values
        ):
            raise UserError(f"{folder}/preprocessor_config.json: {name} is {values!r}; it is three numbers")
