"""Assembles a model from a LLaVA, a SAM, a projection and a tokenizer, and checks that they agree."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.clip import CLIPImageProcessorPil

from model.checkpoints.layouts.base import Parts
from model.checkpoints.layouts.sam import read_sam
from model.config import CLIP_MEAN, CLIP_STD, LasagnaConfig
from model.decoders.build import build_decoder
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration, build_seg_projector
from model.processor import LasagnaProcessor
from model.strict_loading import load_strictly
from model.text.format import DEFAULT_NUM_ALL_CLASSES, SequenceFormat
from model.text.special_tokens import IMAGE
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens, token_ids

logger = logging.getLogger(__name__)

DEFAULT_FORMAT = "paper"
DEFAULT_PROMPT = "llava_v1"


def as_format(format: SequenceFormat | str) -> SequenceFormat:
    return SequenceFormat.named(format) if isinstance(format, str) else format


def assemble(
    parts: Parts,
    *,
    sam: str | None,
    format: SequenceFormat | str | None,
    prompt: str | None,
    seed: int,
) -> LasagnaForConditionalGeneration:
    """Assembles a model from its parts. A part that is missing is initialised anew, and the log says so.

    Args:
        parts: as a layout's reader returns them.
        sam, format, prompt, seed: as for `load_model`.

    Raises:
        FileNotFoundError, ValueError: there is no SAM, or parts do not belong together.
    """
    if parts.sam is not None:
        settings, sam_weights = parts.sam
    elif sam:
        settings, sam_weights = read_sam(sam)
    else:
        raise FileNotFoundError(
            f"{parts.folder} has no SAM inside; pass --vision_pretrained sam_vit_h_4b8939.pth"
        )
    generator = torch.Generator().manual_seed(seed)
    sequence_format = as_format(format or parts.format or DEFAULT_FORMAT)
    if parts.format and parts.format.name != sequence_format.name:
        logger.warning(
            "%s was trained with --format %s; the tokens of %s start untrained",
            parts.folder,
            parts.format.name,
            sequence_format.name,
        )
    tokenizer = load_tokenizer(parts.folder)
    num_known = check_vocabulary(parts, tokenizer)
    add_special_tokens(tokenizer, sequence_format)
    fit_vocabulary(parts.vlm, num_known, len(tokenizer), generator)
    ids = token_ids(tokenizer, sequence_format)
    parts.vlm.config.image_token_index = ids.image
    clip = parts.clip_processor
    config = LasagnaConfig(
        vlm_config=parts.vlm.config,
        sam_config=settings.to_dict(),
        sequence_format=sequence_format.to_dict(),
        prompt=prompt or parts.prompt or DEFAULT_PROMPT,
        num_all_classes=parts.num_all_classes or DEFAULT_NUM_ALL_CLASSES,
        image_token_id=ids.image,
        seg_token_id=ids.seg,
        neg_token_id=ids.neg,
        image_aspect_ratio=parts.image_aspect_ratio,
        clip_mean=clip.get("image_mean", CLIP_MEAN),
        clip_std=clip.get("image_std", CLIP_STD),
    )
    model = from_parts(config, parts.vlm, sam_weights, parts.seg_projector, generator)
    model.processor = build_processor(config, tokenizer, clip)
    return model


def from_parts(
    config: LasagnaConfig,
    vlm: PreTrainedModel,
    sam_weights: dict[str, Tensor],
    projector_weights: dict[str, Tensor] | None,
    generator: torch.Generator,
) -> LasagnaForConditionalGeneration:
    """The model around a loaded `vlm`. Nothing is allocated twice: the shell is built on the meta device."""
    with torch.device("meta"):
        model = LasagnaForConditionalGeneration(config)
    model.vlm = vlm
    model.sam = build_decoder(config.sam_settings)
    load_strictly(model.sam, sam_weights, source="SAM", hint="Is --vision_pretrained a whole SAM file?")
    model.seg_projector = build_seg_projector(config)
    if projector_weights is not None:
        load_strictly(
            model.seg_projector,
            projector_weights,
            source="the projection",
            hint="Is --version's config.json the one of its weights?",
        )
        logger.info("projection and mask decoder: trained, from the folder")
    else:
        logger.info("projection: new, to be trained")
        for layer in model.seg_projector:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5  # as torch initialises it, but from our generator
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.zeros_(layer.bias)
    model.sam.to(vlm.dtype)
    model.seg_projector.to(vlm.dtype)
    return model.eval()


def check_vocabulary(parts: Parts, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens that have a row in the weights; rows beyond the tokenizer's are padding.

    Raises:
        ValueError: the tokenizer has tokens without a row, or lacks those that trained weights answer with.
    """
    num_rows = len(parts.vlm.get_input_embeddings().weight)
    vocabulary = tokenizer.get_vocab()
    # The layouts of others have no row for `<image>`, our own last token.
    num_tokens = len(tokenizer) - (vocabulary.get(IMAGE) == len(tokenizer) - 1 == num_rows)
    if num_tokens > num_rows:
        raise UserError(
            f"the tokenizer in {parts.folder} has {num_tokens} tokens but its weights have {num_rows} rows; copy "
            "tokenizer.model, tokenizer.json and added_tokens.json from where the weights come from"
        )
    if parts.format is not None and parts.seg_projector is not None:
        for token in (parts.format.seg, parts.format.neg):
            if token is not None and token not in vocabulary:
                raise UserError(
                    f"the tokenizer in {parts.folder} has no {token}, which its weights answer with; copy "
                    "added_tokens.json (and tokenizer.json) from where the weights come from"
                )
    return num_tokens


def check_agreement(model: LasagnaForConditionalGeneration) -> None:
    """Checks that weights, config, tokenizer and image processing belong to the same model.

    Raises:
        ValueError: they do not; the message names the values and the files that disagree.
    """
    config, processor = model.config, model.processor
    ids, vision = processor.token_ids, config.vlm_config.vision_config
    num_rows = len(model.get_input_embeddings().weight)
    num_patches = len(model.llava.model.vision_tower.embeddings.position_embedding.weight) - 1
    has_class_token = config.vlm_config.vision_feature_select_strategy == "full"
    facts = (
        ("rows of embed_tokens", num_rows, "tokens in the tokenizer", len(processor.tokenizer)),
        ("rows of lm_head", len(model.get_output_embeddings().weight), "rows of embed_tokens", num_rows),
        ("image_token_id of config.json", config.image_token_id, f"id of {IMAGE}", ids.image),
        ("seg_token_id of config.json", config.seg_token_id, f"id of {processor.format.seg}", ids.seg),
        ("neg_token_id of config.json", config.neg_token_id, f"id of {processor.format.neg}", ids.neg),
        ("image_token_id of config.json", config.image_token_id, "last row of the vocabulary", num_rows - 1),
        ("patches of the CLIP weights", num_patches, "patches of config.json", patches_of(vision)),
        (
            "num_image_tokens of processor_config.json",
            processor.num_image_tokens,
            "image features of the CLIP weights",
            num_patches + has_class_token,
        ),
        (
            "CLIP's image size of preprocessor_config.json",
            side_of(processor),
            "of config.json",
            vision.image_size,
        ),
        (
            "sam_image_size of processor_config.json",
            processor.sam_image_size,
            "image size of the SAM weights",
            model.sam.input_side,
        ),
        (
            "sam_resize of processor_config.json",
            processor.sam_resize,
            "that of the mask decoder",
            config.sam_settings.resize,
        ),
    )
    facts += tuple(
        (f"{name} of config.json", getattr(config, name), "that of processor_config.json", value)
        for name, value in (
            ("prompt", processor.prompt),
            ("image_aspect_ratio", processor.image_aspect_ratio),
            ("sequence_format", processor.format.to_dict()),
        )
    )
    wrong = [f"{a} is {x}, but {b} is {y}" for a, x, b, y in facts if x != y]
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)}. The folder of --version holds files of different models; copy it again"
        )


def patches_of(vision: Any) -> int:
    """Patches of an image, from the config of a CLIP tower."""
    return (vision.image_size // vision.patch_size) ** 2


def side_of(processor: LasagnaProcessor) -> int | None:
    """Height and width of CLIP's input, pixels; None where they differ."""
    size = processor.clip.crop_size
    return size["height"] if size["height"] == size["width"] else None


@torch.no_grad()
def fit_vocabulary(vlm: PreTrainedModel, num_known: int, num_tokens: int, generator: torch.Generator) -> None:
    """Resizes embeddings and lm_head to `num_tokens` rows; new rows, from `num_known` on, are set to the mean.

    Noise of a tenth of the rows' standard deviation makes the new tokens distinct. Padding rows are dropped.
    """
    vlm.resize_token_embeddings(num_tokens, mean_resizing=False)
    matrices = [vlm.get_input_embeddings().weight]
    if not vlm.config.tie_word_embeddings:
        matrices.append(vlm.get_output_embeddings().weight)
    for matrix in matrices:
        known = matrix[:num_known].float()
        noise = torch.randn(num_tokens - num_known, matrix.shape[1], generator=generator).to(known.device)
        matrix[num_known:] = (known.mean(0) + 0.1 * known.std(0) * noise).to(matrix.dtype)


def build_processor(
    config: LasagnaConfig, tokenizer: PreTrainedTokenizerBase, clip: dict[str, Any]
) -> LasagnaProcessor:
    """The processor of a model; `clip` is the preprocessor_config.json of its CLIP tower, possibly empty."""
    vision = config.vlm_config.vision_config
    side = vision.image_size
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=config.clip_mean,
        image_std=config.clip_std,
        **{name: clip[name] for name in ("resample",) if name in clip},
    )
    has_class_token = config.vlm_config.vision_feature_select_strategy == "full"
    return LasagnaProcessor(
        tokenizer=tokenizer,
        clip=image_processor,
        sam_image_size=config.sam_settings.image_size,
        sam_resize=config.sam_settings.resize,
        num_image_tokens=patches_of(vision) + has_class_token,
        prompt=config.prompt,
        format=config.format,
        image_aspect_ratio=config.image_aspect_ratio,
    )
