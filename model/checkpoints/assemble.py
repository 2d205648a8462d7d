"""Assembles a model from a LLaVA or another base, a SAM, a projection and a tokenizer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.clip import CLIPImageProcessorPil

from model.backbones.base import ImageReader
from model.backbones.clip_images import ClipImages
from model.backbones.huggingface_images import images_of_base
from model.checkpoints.agreement import patches_of
from model.checkpoints.layouts.base import Parts
from model.checkpoints.layouts.mask_decoder import check_head, read_mask_decoder
from model.config import CLIP_MEAN, CLIP_STD, LasagnaConfig
from model.decoders.build import build_decoder
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration, build_seg_projector
from model.processor import LasagnaProcessor
from model.strict_loading import check_fit, load_strictly
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
    mask_head: str | None = None,
) -> LasagnaForConditionalGeneration:
    """Assembles a model from its parts. A part that is missing is initialised anew, and the log says so.

    Args:
        parts: as a layout's reader returns them.
        sam, format, prompt, seed, mask_head: as for `load_model`.

    Raises:
        FileNotFoundError, ValueError: there is no SAM, or parts do not belong together.
    """
    if parts.sam is not None:
        settings, sam_weights = parts.sam
        check_head(settings, mask_head, str(parts.folder))
    elif sam:
        settings, sam_weights = read_mask_decoder(sam, mask_head)
        logger.info("mask decoder: %s of %s", settings.title, sam)
    else:
        raise FileNotFoundError(
            f"{parts.folder} has no SAM inside; pass --vision_pretrained sam_vit_h_4b8939.pth (or a SAM 2)"
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
    add_special_tokens(tokenizer, sequence_format, for_llava=parts.base_processor is None)
    fit_vocabulary(parts.vlm, num_known, len(tokenizer), generator)
    prompt = prompt or parts.prompt or DEFAULT_PROMPT
    if parts.base_processor is None:
        images = None
        ids = token_ids(tokenizer, sequence_format)
        parts.vlm.config.image_token_index = ids.image
    else:
        family = parts.vlm.config.model_type
        images = images_of_base(parts.folder, family, parts.base_processor, tokenizer, prompt)
        end = images.template.end_token(tokenizer)
        ids = token_ids(tokenizer, sequence_format, images.image_token, end)
    clip = parts.clip_processor
    config = LasagnaConfig(
        vlm_config=parts.vlm.config,
        sam_config=settings.to_dict(),
        sequence_format=sequence_format.to_dict(),
        prompt=prompt,
        num_all_classes=parts.num_all_classes or DEFAULT_NUM_ALL_CLASSES,
        image_token_id=ids.image,
        seg_token_id=ids.seg,
        neg_token_id=ids.neg,
        image_aspect_ratio=parts.image_aspect_ratio,
        clip_mean=clip.get("image_mean", CLIP_MEAN),
        clip_std=clip.get("image_std", CLIP_STD),
    )
    model = from_parts(config, parts.vlm, sam_weights, parts.seg_projector, generator)
    model.processor = build_processor(config, tokenizer, images or images_of_llava(config, clip))
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
    title = config.sam_settings.title
    hint = f"Is --vision_pretrained a whole {title}, with the config.json of its own weights?"
    check_fit(model.sam.state_dict(), sam_weights, source=title, hint=hint)  # before anything is allocated
    model.sam = build_decoder(config.sam_settings)
    load_strictly(model.sam, sam_weights, source=title, hint=hint)
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


@torch.no_grad()
def fit_vocabulary(vlm: PreTrainedModel, num_known: int, num_tokens: int, generator: torch.Generator) -> None:
    """Resizes embeddings and lm_head to `num_tokens` rows; new rows, from `num_known` on, are set to the mean.

    Noise of a tenth of the rows' standard deviation makes the new tokens distinct. Padding rows of a LLaVA are
    dropped, whose last row is `<image>`; those of other bases stay, and new tokens take the first of them.
    """
    if vlm.config.model_type == "llava" or num_tokens > len(vlm.get_input_embeddings().weight):
        vlm.resize_token_embeddings(num_tokens, mean_resizing=False)
    matrices = [vlm.get_input_embeddings().weight]
    if not vlm.config.tie_word_embeddings:
        matrices.append(vlm.get_output_embeddings().weight)
    for matrix in matrices:
        known = matrix[:num_known].float()
        noise = torch.randn(num_tokens - num_known, matrix.shape[1], generator=generator).to(known.device)
        matrix[num_known:num_tokens] = (known.mean(0) + 0.1 * known.std(0) * noise).to(matrix.dtype)


def build_processor(
    config: LasagnaConfig, tokenizer: PreTrainedTokenizerBase, images: ImageReader
) -> LasagnaProcessor:
    """The processor of a model, around the reader of its base's images."""
    return LasagnaProcessor(
        tokenizer=tokenizer,
        images=images,
        sam_image_size=config.sam_settings.image_size,
        sam_resize=config.sam_settings.resize,
        prompt=config.prompt,
        format=config.format,
    )


def images_of_llava(config: LasagnaConfig, clip: dict[str, Any]) -> ClipImages:
    """The images of a LLaVA; `clip` is the preprocessor_config.json of its CLIP tower, possibly empty."""
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
    return ClipImages(
        clip=image_processor,
        num_image_tokens=patches_of(vision) + has_class_token,
        image_aspect_ratio=config.image_aspect_ratio,
    )
