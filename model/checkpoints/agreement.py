"""Whether weights, config, tokenizer and image processing of a loaded model belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model.backbones.clip_images import ClipImages
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration

Fact = tuple[str, Any, str, Any]  # what one place says, and what another says, which must be the same


def check_agreement(model: LasagnaForConditionalGeneration) -> None:
    """Checks that weights, config, tokenizer and image processing belong to the same model.

    Raises:
        ValueError: they do not; the message names the values and the files that disagree.
    """
    facts = [*_facts(model), *(_llava_facts(model) if model.config.is_llava else _other_facts(model))]
    wrong = [f"{a} is {x}, but {b} is {y}" for a, x, b, y in facts if x != y]
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)}. The folder of --version holds files of different models; copy it again"
        )


def _facts(model: LasagnaForConditionalGeneration) -> Iterator[Fact]:
    """What must agree whatever the backbone is."""
    config, processor = model.config, model.processor
    ids = processor.token_ids
    num_rows = len(model.get_input_embeddings().weight)
    yield "rows of lm_head", len(model.get_output_embeddings().weight), "rows of embed_tokens", num_rows
    image = f"id of {processor.images.image_token}"
    yield "image_token_id of config.json", config.image_token_id, image, ids.image
    yield "seg_token_id of config.json", config.seg_token_id, f"id of {processor.format.seg}", ids.seg
    yield "neg_token_id of config.json", config.neg_token_id, f"id of {processor.format.neg}", ids.neg
    yield (
        "sam_image_size of processor_config.json",
        processor.sam_image_size,
        "image size of the SAM weights",
        model.sam.input_side,
    )
    resize = config.sam_settings.resize
    yield "sam_resize of processor_config.json", processor.sam_resize, "that of the mask decoder", resize
    for name, value in (("prompt", processor.prompt), ("sequence_format", processor.format.to_dict())):
        yield f"{name} of config.json", getattr(config, name), "that of processor_config.json", value


def _llava_facts(model: LasagnaForConditionalGeneration) -> Iterator[Fact]:
    config, images = model.config, model.processor.images
    vision = config.vlm_config.vision_config
    num_rows = len(model.get_input_embeddings().weight)
    num_patches = len(model.base_vlm.model.vision_tower.embeddings.position_embedding.weight) - 1
    has_class_token = config.vlm_config.vision_feature_select_strategy == "full"
    num_tokens = len(model.processor.tokenizer)
    yield "rows of embed_tokens", num_rows, "tokens in the tokenizer", num_tokens
    yield "image_token_id of config.json", config.image_token_id, "last row of the vocabulary", num_rows - 1
    yield "patches of the CLIP weights", num_patches, "patches of config.json", patches_of(vision)
    if not isinstance(images, ClipImages):
        yield "the images of processor_config.json", "another model's", "config.json", "a LLaVA"
        return
    yield (
        "num_image_tokens of processor_config.json",
        images.num_image_tokens,
        "image features of the CLIP weights",
        num_patches + has_class_token,
    )
    name = "CLIP's image size of preprocessor_config.json"
    yield name, side_of(images), "of config.json", vision.image_size
    name = "image_aspect_ratio of config.json"
    yield name, config.image_aspect_ratio, "that of processor_config.json", images.image_aspect_ratio


def _other_facts(model: LasagnaForConditionalGeneration) -> Iterator[Fact]:
    config, num_tokens = model.config, len(model.processor.tokenizer)
    num_rows = len(model.get_input_embeddings().weight)
    inner = config.vlm_config.image_token_id
    yield "image_token_id of config.json", config.image_token_id, "that of its vlm_config", inner
    few = f"{num_tokens} tokens in the tokenizer, or more"
    yield "rows of embed_tokens", num_rows, few, max(num_rows, num_tokens)
    kind = type(model.processor.images).__name__
    yield "the images of processor_config.json", kind, "config.json", "HuggingFaceImages"


def patches_of(vision: Any) -> int:
    """Patches of an image, from the config of a CLIP tower."""
    return (vision.image_size // vision.patch_size) ** 2


def side_of(images: ClipImages) -> int | None:
    """Height and width of CLIP's input, pixels; None where they differ."""
    size = images.clip.crop_size
    return size["height"] if size["height"] == size["width"] else None
