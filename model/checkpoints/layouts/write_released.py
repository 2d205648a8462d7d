"""Writes a model in the layout that the authors of LaSagnA and LISA release, so that other tools read it.

config.json, pytorch_model*.bin           as their merge script writes them; `<image>` and CLIP are not inside
tokenizer.model, added_tokens.json, ...   for the tokenizer class of transformers 4.31
vision_tower/                             the CLIP tower, for `--vision_tower`
lasagna/                                  our config, tokenizer and processor, which other tools ignore
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, PreTrainedTokenizerBase

from model.backbones.clip_images import ClipImages
from model.checkpoints.layouts import llava_v1, released
from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.checkpoints.layouts.clip import TOWER_FOLDER, TOWER_WEIGHT_PREFIX
from model.checkpoints.weights import SAFETENSORS_FILE, TORCH_FILE
from model.checkpoints.write import SHARD_SIZE, write_shards
from model.errors import UserError
from model.text.special_tokens import IMAGE

if TYPE_CHECKING:
    from model.config import LasagnaConfig
    from model.lasagna import LasagnaForConditionalGeneration

logger = logging.getLogger(__name__)

# Sequence format -> the class that reads it. LISA's code takes the token [SEG], which the paper's format has too.
ARCHITECTURES = {"release": "LaSagnAForCausalLM", "lisa": "LISAForCausalLM", "paper": "LISAForCausalLM"}
# Published towers by (width, image size, patch size): the name that other tools load.
TOWER_NAMES = {
    (1024, 224, 14): "openai/clip-vit-large-patch14",
    (1024, 336, 14): "openai/clip-vit-large-patch14-336",
}


def write_released(
    model: LasagnaForConditionalGeneration,
    folder: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Writes a model, adapters merged, in the released layout; `load_model(folder)` returns it unchanged.

    Only the row of `<image>`, which is never read, is lost. Memory: one shard beyond the model.

    Args:
        model: with its processor attached.
        folder: is made; files of the same name in it are replaced.
        shard_size, progress: as for `write_shards`.

    Returns:
        The hash of each weight under its name there, for `verify`.

    Raises:
        ValueError: the model has adapters, or a part that the layout has no place for.
    """
    folder = Path(folder)
    if not model.config.is_llava:
        raise UserError(
            f"--layout lisa is the layout of LLaVA; a {model.config.vlm_config.model_type} is written as a folder of "
            "this repository: leave --layout out"
        )
    if model.base_vlm is not model.vlm:
        raise ValueError("the model has LoRA adapters; call model.lora.merge(model) before it is exported")
    folder.mkdir(parents=True, exist_ok=True)
    config = released_config(model.config, dtype=model.dtype)
    write_json(folder / "config.json", config)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids | {"use_cache": False})  # see `released_config`
    weights = released_weights(model)
    hashes = write_shards(
        folder,
        {name: read().nbytes for name, read in weights.items()},
        lambda name: weights[name](),
        file=TORCH_FILE,
        shard_size=shard_size,
        progress=progress,
    )
    write_original_tokenizer(model.processor.tokenizer, folder)
    write_tower(model.vlm.model.vision_tower, folder / TOWER_FOLDER)
    images = model.processor.images
    assert isinstance(images, ClipImages), "a LLaVA's"
    images.clip.save_pretrained(folder / TOWER_FOLDER)
    model.config.save_pretrained(folder / SETTINGS_FOLDER)
    model.processor.save_pretrained(folder / SETTINGS_FOLDER)
    return hashes


def released_projector_type(config: LasagnaConfig) -> str:
    """The `mm_projector_type` of a model of ours."""
    act = config.vlm_config.projector_hidden_act
    kinds = {ours: theirs for theirs, ours in llava_v1.PROJECTOR_ACT.items()}
    if act not in kinds:
        raise UserError(f"the released layout has no projector with {act!r}; known: {', '.join(kinds)}")
    return kinds[act]


def released_config(config: LasagnaConfig, *, dtype: torch.dtype) -> dict[str, Any]:
    """The flat config.json of the released layout.

    Raises:
        ValueError: the language model is not a LLaMA, or the mask decoder not a SAM.
    """
    if config.sam_settings.kind != "sam":
        raise UserError(f"the released layout holds a SAM; this model has {config.sam_settings.title}")
    if config.spatial_prompt or config.image_aspect_ratio == "stretch":
        what = "--spatial_prompt" if config.spatial_prompt else "--image_aspect_ratio stretch"
        raise UserError(f"the released layout has no place for {what}; take --layout lasagna")
    text, vision = config.vlm_config.text_config, config.vlm_config.vision_config
    if text.model_type != "llama":
        raise UserError(f"the released layout holds a LLaMA; this model has a {text.model_type!r}")
    fields = {name: getattr(text, name, None) for name in llava_v1.LLAMA_FIELDS}
    rope = dict(text.rope_parameters)
    fields["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    fields["rope_scaling"] = None if rope["type"] == "default" else rope
    select = {ours: theirs for theirs, ours in llava_v1.SELECT_FEATURE.items()}
    tower = TOWER_NAMES.get((vision.hidden_size, vision.image_size, vision.patch_size), TOWER_FOLDER)
    kind = released_projector_type(config)
    return fields | {
        "architectures": [ARCHITECTURES[config.format.name]],
        "model_type": "llava",
        "vocab_size": config.image_token_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
        # Their evaluation reads the hidden states of the whole answer from the last step of generation.
        "use_cache": False,
        "use_mm_proj": True,
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_tower": tower,
        "vision_tower": tower,
        "mm_vision_select_layer": config.vlm_config.vision_feature_layer,
        "mm_vision_select_feature": select[config.vlm_config.vision_feature_select_strategy],
        "mm_use_im_start_end": True,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.image_aspect_ratio,
        "train_mask_decoder": True,
        "out_dim": config.sam_settings.prompt_embed_dim,
        **({"mm_projector_type": kind} if kind != "linear" else {}),
    }


def released_weights(model: LasagnaForConditionalGeneration) -> dict[str, Callable[[], Tensor]]:
    """Their names, each with a function that gives the weight.

    Raises:
        ValueError: the layout has no name for a weight.
    """
    projector, num_rows = released_projector_type(model.config), model.config.image_token_id
    weights = model.state_dict()
    readers: dict[str, Callable[[], Tensor]] = {}
    for name in weights:
        theirs = released_name(name, projector)
        if theirs is not None:
            # Their vocabulary has no `<image>`, our last row.
            end = num_rows if "embed_tokens" in theirs or "lm_head" in theirs else None
            readers[theirs] = partial(
                lambda name, end: weights[name][:end] if end else weights[name], name, end
            )
        elif name.startswith("vlm." + llava_v1.LINEAR_2):
            value = weights[name]
            neutral = torch.eye(len(value)) if value.dim() == 2 else torch.zeros(len(value))
            if not torch.equal(value.float().cpu(), neutral):
                raise UserError(f"{name} is not the identity; a linear projector has no second layer")
        elif not name.startswith("vlm.model.vision_tower."):
            raise UserError(f"{name} has no name in the released layout")
    text = model.config.vlm_config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    powers = torch.arange(0, head_dim, 2).float() / head_dim
    frequencies = 1.0 / text.rope_parameters["rope_theta"] ** powers
    for layer in range(text.num_hidden_layers):  # a buffer that transformers 4.31 stored
        readers[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies.clone
    return readers


def released_name(name: str, projector: str) -> str | None:
    """Their name of one of our weights; None for one that they do not store."""
    for theirs, ours in released.NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return llava_v1.original_name(name.removeprefix("vlm."), projector)


def write_tower(tower: CLIPVisionModel, folder: Path) -> None:
    """The CLIP tower under the names that its authors published, with `vision_model.` in front.

    Newer versions of transformers write none and read both; older ones start a tower without it at random.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower.config.architectures = [type(tower).__name__]
    tower.config.save_pretrained(folder)
    weights = {
        TOWER_WEIGHT_PREFIX + name.removeprefix(TOWER_WEIGHT_PREFIX): value.contiguous()
        for name, value in tower.state_dict().items()
    }
    save_file(weights, folder / SAFETENSORS_FILE, metadata={"format": "pt"})


def write_original_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The sentencepiece files of transformers 4.31; without a sentencepiece model, tokenizer.json."""
    backend = tokenizer.backend_tokenizer
    num_pieces = backend.get_vocab_size(with_added_tokens=False)
    added = {
        token.content: index
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if index >= num_pieces and token.content != IMAGE
    }
    named = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(tokenizer, name) is not None
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": backend.pre_tokenizer is None,  # see `load_tokenizer`
        "add_bos_token": True,
        "add_eos_token": False,
        "padding_side": "right",
        "model_max_length": tokenizer.model_max_length,
        **named,
    }
    sentencepiece = Path(getattr(tokenizer, "vocab_file", None) or "")
    if sentencepiece.is_file():
        shutil.copyfile(sentencepiece, folder / "tokenizer.model")
    else:
        logger.warning(
            "the tokenizer has no sentencepiece model; tools that want tokenizer.model cannot read it"
        )
        state = json.loads(backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != IMAGE]
        (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, content in (
        ("added_tokens.json", added), ("special_tokens_map.json", named), ("tokenizer_config.json", settings)
    ):  # fmt: skip
        write_json(folder / name, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
