"""ONE door: `load_model(path)` recognises every checkpoint layout and returns a model with its processor.

A LLaVA alone (a base to train from) gets SAM from `vision_pretrained` and a fresh projection; a folder that
has them keeps them. Loading is strict: a weight that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.clip import CLIPImageProcessorPil

from model.config import CLIP_MEAN, CLIP_STD, LasagnaConfig
from model.interop import hf_llava, llava_v1, ours, released
from model.interop.parts import Parts, ReadOptions, local_folder, read_json
from model.interop.sam import read_sam
from model.lasagna import LasagnaForConditionalGeneration, build_seg_projector
from model.processor import LasagnaProcessor
from model.sam import SamSegmenter
from model.sequence import SequenceFormat
from model.tokens import add_special_tokens, load_tokenizer, token_ids
from model.weights import load_strictly

logger = logging.getLogger(__name__)

LAYOUTS: dict[str, ModuleType] = {
    "LaSagnA folder": ours,
    "Hugging Face LLaVA": hf_llava,
    "released LaSagnA or LISA": released,
    "original LLaVA": llava_v1,
}
DEFAULT_FORMAT = "paper"
DEFAULT_PROMPT = "llava_v1"


def load_model(
    path: str | Path,
    *,
    vision_tower: str | None = None,
    vision_pretrained: str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str = "auto",
    format: SequenceFormat | str | None = None,
    prompt: str | None = None,
    seed: int = 0,
) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """Loads a model in evaluation mode, on the CPU.

    Args:
        path: folder of any known layout, or the name of a repository on the Hugging Face hub.
        vision_tower: CLIP folder, for layouts that have no CLIP inside.
        vision_pretrained: SAM file, for layouts that have no SAM inside.
        dtype: of the weights; as stored if not given.
        attn_implementation: of the language model; "auto" takes flash attention where it can run, else SDPA.
        format: sequence format (or its name) where the folder does not say; "paper" if nobody does.
        prompt: prompt template where the folder does not say.
        seed: for weights that are new: rows of added tokens and, if the folder has none, the projection.

    Raises:
        FileNotFoundError, ValueError: something is absent or does not fit; the message names the flag.
    """
    folder = local_folder(path, flag="--version")
    layout = recognise(folder)
    options = ReadOptions(
        vision_tower=vision_tower,
        dtype=dtype,
        attn_implementation=choose_attention(attn_implementation, dtype),
    )
    logger.info("%s: %s; attention: %s", folder, layout, options.attn_implementation)
    read = LAYOUTS[layout].read(folder, options)
    if isinstance(read, LasagnaForConditionalGeneration):
        logger.info("projection and mask decoder: trained, from the folder")
        model = with_settings(read, format, prompt)
    else:
        model = assemble(read, vision_pretrained=vision_pretrained, format=format, prompt=prompt, seed=seed)
    return model, model.processor


def recognise(folder: Path) -> str:
    """The name in `LAYOUTS` of a folder's layout.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ValueError: its config.json is of none of the known layouts.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; pass the folder of a whole model "
            "(of a training run, what merge_lora_weights_and_save_hf_model.py makes of it)"
        )
    config = read_json(folder / "config.json")
    for name, layout in LAYOUTS.items():
        if layout.recognises(config):
            return name
    raise ValueError(
        f"{folder}/config.json has model_type {config.get('model_type')!r} and architectures "
        f"{config.get('architectures')}; known layouts: {', '.join(LAYOUTS)}"
    )


def choose_attention(name: str, dtype: torch.dtype | None) -> str:
    """ "auto" becomes flash attention where it is installed, there is a GPU and the dtype fits; else SDPA."""
    if name != "auto":
        return name
    flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash and dtype in (torch.float16, torch.bfloat16) else "sdpa"


def with_settings(
    model: LasagnaForConditionalGeneration, format: SequenceFormat | str | None, prompt: str | None
) -> LasagnaForConditionalGeneration:
    """A folder of ours, which says itself how it is spoken to; training may go on with other strategies.

    Raises:
        ValueError: another format or prompt is asked for than the model was trained with.
    """
    stored = SequenceFormat.from_dict(model.config.sequence_format)
    name = format if isinstance(format, str) or format is None else format.name
    if name not in (None, stored.name):
        raise ValueError(f"this model was trained with --format {stored.name}; it cannot take {name!r}")
    if prompt not in (None, model.config.prompt):
        raise ValueError(
            f"this model was trained with prompt {model.config.prompt!r}; it cannot take {prompt!r}"
        )
    if isinstance(format, SequenceFormat):
        model.config.sequence_format = format.to_dict()
        model.processor = replace(model.processor, format=format)
    return model


def as_format(format: SequenceFormat | str) -> SequenceFormat:
    return SequenceFormat.named(format) if isinstance(format, str) else format


def assemble(
    parts: Parts,
    *,
    vision_pretrained: str | None,
    format: SequenceFormat | str | None,
    prompt: str | None,
    seed: int,
) -> LasagnaForConditionalGeneration:
    """Puts a LLaVA, a SAM, a projection and a tokenizer together; what is missing is made new, and said."""
    if parts.sam is not None:
        settings, sam_weights = parts.sam
    elif vision_pretrained:
        settings, sam_weights = read_sam(vision_pretrained)
    else:
        raise FileNotFoundError(
            f"{parts.folder} has no SAM inside; pass --vision_pretrained sam_vit_h_4b8939.pth"
        )
    generator = torch.Generator().manual_seed(seed)
    sequence_format = as_format(format or parts.format_name or DEFAULT_FORMAT)
    if parts.format_name not in (None, sequence_format.name):
        logger.warning(
            "%s was trained with the %r format; the tokens of %r start untrained",
            parts.folder,
            parts.format_name,
            sequence_format.name,
        )
    tokenizer = load_tokenizer(parts.folder)
    num_known = min(len(tokenizer), len(parts.vlm.get_input_embeddings().weight))
    add_special_tokens(tokenizer, sequence_format)
    fit_vocabulary(parts.vlm, num_known, len(tokenizer), generator)
    ids = token_ids(tokenizer, sequence_format)
    parts.vlm.config.image_token_index = ids.image
    clip = parts.clip_processor
    config = LasagnaConfig(
        vlm_config=parts.vlm.config,
        sam_config=settings.to_dict(),
        sequence_format=sequence_format.to_dict(),
        prompt=prompt or DEFAULT_PROMPT,
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
    """The model around a loaded `vlm`. Nothing is allocated twice: the shell is built without memory."""
    with torch.device("meta"):
        model = LasagnaForConditionalGeneration(config)
    model.vlm = vlm
    model.sam = SamSegmenter(config.sam_settings)
    load_strictly(model.sam, sam_weights, source="the SAM checkpoint")
    model.seg_projector = build_seg_projector(config)
    if projector_weights is not None:
        load_strictly(model.seg_projector, projector_weights, source="the projection")
    else:
        logger.info("projection: new, to be trained")
        for layer in model.seg_projector:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5  # torch's own start, from our generator
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.zeros_(layer.bias)
    model.sam.to(vlm.dtype)
    model.seg_projector.to(vlm.dtype)
    return model.eval()


@torch.no_grad()
def fit_vocabulary(vlm: PreTrainedModel, num_known: int, num_tokens: int, generator: torch.Generator) -> None:
    """Makes embeddings and lm_head `num_tokens` rows long; from `num_known` on they start at the mean.

    Noise of a tenth of the rows' own spread tells the new tokens apart. Padding rows of the old matrices go.
    """
    vlm.resize_token_embeddings(num_tokens, mean_resizing=False)
    matrices = [vlm.get_input_embeddings().weight]
    if not vlm.config.tie_word_embeddings:
        matrices.append(vlm.get_output_embeddings().weight)
    for matrix in matrices:
        known = matrix[:num_known].float()
        noise = torch.randn(num_tokens - num_known, matrix.shape[1], generator=generator)
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
    num_patches = (side // vision.patch_size) ** 2
    has_class_token = config.vlm_config.vision_feature_select_strategy == "full"
    return LasagnaProcessor(
        tokenizer=tokenizer,
        clip=image_processor,
        sam_image_size=config.sam_settings.image_size,
        num_image_tokens=num_patches + has_class_token,
        prompt=config.prompt,
        format=SequenceFormat.from_dict(config.sequence_format),
        image_aspect_ratio=config.image_aspect_ratio,
    )
