"""Tiny checkpoints in the published layouts: an original LLaVA v1, its CLIP, a SAM."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Sam3Config,
    Sam3Model,
)

from model.decoders.concept import ConceptSegmenter
from model.decoders.concept_settings import ConceptSettings
from model.decoders.sam import SamSegmenter, SamSettings, build_sam
from model.decoders.sam2 import Sam2Segmenter, Sam2Settings

HIDDEN_DIM, CLIP_DIM = 32, 16
SAM = SamSettings(
    image_size=64,
    encoder_dim=16,
    encoder_depth=2,
    encoder_num_heads=2,
    encoder_mlp_dim=32,
    encoder_global_blocks=(1,),
    encoder_window_size=3,
    prompt_embed_dim=32,
    decoder_mlp_dim=32,
    iou_head_dim=16,
)
# Its global block is not the first of a stage, where the library fails.
SAM2 = Sam2Settings(
    vision_config={
        "backbone_config": {
            "hidden_size": 8, "image_size": 64, "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [4, 2, 4, 2], "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [3, 3],
        },
        "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    prompt_encoder_config={"hidden_size": 32, "image_size": 64},
    mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 16},
)  # fmt: skip
SAM3 = Sam2Settings(
    kind="sam3_tracker",
    vision_config={
        "backbone_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 56, "window_size": 3, "global_attn_indexes": [1], "pretrain_image_size": 28,
        },
        "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    prompt_encoder_config={"hidden_size": 32, "image_size": 56},
    mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 16},
)  # fmt: skip

CONCEPT = ConceptSettings(
    vision_config=SAM3.vision_config,
    detr_encoder_config={"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    detr_decoder_config={
        "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_queries": 6,
    },
    mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4},
)  # fmt: skip


@dataclass(frozen=True)
class TinyFolders:
    """Where the checkpoints are."""

    llava: Path
    clip: Path
    sam: Path

    @property
    def parts(self) -> dict[str, str]:
        """What `load_model` needs besides the LLaVA."""
        return {"vision_tower": str(self.clip), "sam": str(self.sam)}

    @property
    def flags(self) -> dict[str, str]:
        """The same as flags of the scripts, as stored in a run's settings."""
        return {"vision_tower": str(self.clip), "vision_pretrained": str(self.sam)}


def write_base(folder: Path, tokenizer_folder: Path, *, seed: int = 0) -> TinyFolders:
    """Writes all three with random weights that depend only on the seed."""
    torch.manual_seed(seed)
    folders = TinyFolders(llava=folder / "llava", clip=folder / "clip", sam=folder / "sam.pth")
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tower().save_pretrained(folders.clip)
    write_sam(folders.sam)
    write_llava(folders.llava, tokenizer_folder)
    return folders


def tiny_tower(**changes: int) -> CLIPVisionModel:
    """A CLIP tower of three layers and four patches; `changes` are other entries of its config."""
    entries = {
        "hidden_size": CLIP_DIM,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return CLIPVisionModel(CLIPVisionConfig(**entries | changes))


def with_tower(weights: dict[str, Tensor], tower: CLIPVisionModel) -> dict[str, Tensor]:
    """Weights of an original LLaVA with the tower inside, as LLaVA 1.5 has it."""
    prefix = "model.vision_tower.vision_tower.vision_model."
    inside = {
        prefix + name.removeprefix("vision_model."): value for name, value in tower.state_dict().items()
    }
    return weights | inside


def write_sam(path: Path) -> None:
    """A SAM file with random weights."""
    sam = build_sam(SAM)
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(sam.state_dict(), path)


def write_llava(folder: Path, tokenizer_folder: Path) -> None:
    """An original LLaVA v1: flat config, one pytorch_model.bin, linear projector, sentencepiece tokenizer."""
    shutil.copytree(tokenizer_folder, folder)
    llama_config = LlamaConfig(
        vocab_size=700,
        hidden_size=HIDDEN_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
    weights = LlamaForCausalLM(llama_config).state_dict()
    weights["model.mm_projector.weight"] = torch.randn(HIDDEN_DIM, CLIP_DIM) * 0.2
    weights["model.mm_projector.bias"] = torch.randn(HIDDEN_DIM) * 0.2
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "hidden_size": HIDDEN_DIM,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "vocab_size": 700,
        "mm_hidden_size": CLIP_DIM,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def edit_json(path: Path, **values: object) -> None:
    """Changes entries of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def save_in_shards(folder: Path, weights: dict[str, Tensor], num_shards: int, *, safetensors: bool) -> None:
    """Weights in several files with an index."""
    stem, suffix = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    files = [f"{stem}-{i + 1:05d}-of-{num_shards:05d}.{suffix}" for i in range(num_shards)]
    names = sorted(weights)
    place = {name: files[i * num_shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        part = {name: weights[name].contiguous() for name in names if place[name] == file}
        save_file(part, folder / file) if safetensors else torch.save(part, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": place}))


def noise_image(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_sam(seed: int = 0) -> SamSegmenter:
    """A frozen SAM as `SAM` says, all weights random."""
    torch.manual_seed(seed)
    segmenter = SamSegmenter(SAM).requires_grad_(False)
    for parameter in segmenter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return segmenter


def random_decoder(settings: Sam2Settings, seed: int = 0) -> Sam2Segmenter:
    """A decoder whose weights are all random; the library starts some at zero, which would hide mistakes."""
    torch.manual_seed(seed)
    decoder = Sam2Segmenter(settings)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    # The two copies of one matrix are equal in published weights.
    decoder.shared_image_embedding.positional_embedding.copy_(
        decoder.prompt_encoder.shared_embedding.positional_embedding
    )
    return decoder


def random_sam3(seed: int = 3) -> Sam3Model:
    """The library's SAM 3 with a detector as `CONCEPT` says, all weights random; by this seed masks are neither empty
    nor full.
    """
    text = {
        "model_type": "clip_text_model", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 8,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    boxes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    settings = CONCEPT.to_dict()
    sections = {name: settings[name] for name in settings if name.endswith("_config")}
    sections["vision_config"]["backbone_config"]["model_type"] = "sam3_vit_model"
    torch.manual_seed(seed)
    model = Sam3Model(Sam3Config(text_config=text, geometry_encoder_config=boxes, **sections))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def concept_of(library: Sam3Model) -> ConceptSegmenter:
    """Our decoder with the detector of a SAM 3."""
    decoder = ConceptSegmenter(CONCEPT)
    own = decoder.state_dict()
    decoder.load_state_dict({name: value for name, value in library.state_dict().items() if name in own})
    return decoder.eval()
