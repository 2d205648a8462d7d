"""Published sizes of bases other than LLaVA, for estimates where their folders are not there.

From the config.json of Qwen/Qwen3-VL-*-Instruct, OpenGVLab/InternVL3-*-hf and HuggingFaceTB/SmolVLM*-Instruct. What
is left out is the default of the family's configuration class. Their parameters add up to the published numbers, in
billions: Qwen3-VL 2.13, 4.44, 8.77; InternVL3 7.94, 2.09; SmolVLM 0.51, 0.26.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def _qwen3_vl(
    hidden: int, mlp: int, layers: int, heads: int, *, tied: bool, large: bool = False
) -> dict[str, Any]:
    vision = {} if large else {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 8,
        },
        "vision_config": {
            **vision, "out_hidden_size": hidden,
            "deepstack_visual_indexes": [8, 16, 24] if large else [5, 11, 17],
        },
    }  # fmt: skip


def _internvl3(hidden: int, mlp: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "internvl",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2", "vocab_size": 151_674, "hidden_size": hidden, "intermediate_size": mlp,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        },
    }  # fmt: skip


def _smolvlm(hidden: int, mlp: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "smolvlm",
        "scale_factor": 4,
        "image_token_id": 49_190,
        "text_config": {
            "model_type": "llama", "vocab_size": 49_280, "hidden_size": hidden, "intermediate_size": mlp,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
            "head_dim": 64, "pad_token_id": 2,
        },
        "vision_config": {
            "hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
        },
    }  # fmt: skip


# Found in the last part of --version, in lower case.
BASES: dict[str, dict[str, Any]] = {
    "qwen3-vl-2b": _qwen3_vl(2048, 6144, 28, 16, tied=True),
    "qwen3-vl-4b": _qwen3_vl(2560, 9728, 36, 32, tied=True),
    "qwen3-vl-8b": _qwen3_vl(4096, 12_288, 36, 32, tied=False, large=True),
    "internvl3-8b": _internvl3(3584, 18_944, 28, 28, 4),
    "internvl3-2b": _internvl3(1536, 8960, 28, 12, 2),
    "smolvlm-500m": _smolvlm(960, 2560, 32, 15, 5),
    "smolvlm2-500m": _smolvlm(960, 2560, 32, 15, 5),
    "smolvlm-256m": _smolvlm(576, 1536, 30, 9, 3),
    "smolvlm2-256m": _smolvlm(576, 1536, 30, 9, 3),
}


def base_named(version: str) -> PreTrainedConfig | None:
    """The configuration of the base that --version names; None if it is none of BASES."""
    name = version.rstrip("/").rpartition("/")[2].lower()
    for key, sizes in BASES.items():
        if key in name:
            fields = dict(sizes)
            return CONFIG_MAPPING[fields.pop("model_type")](**fields)
    return None
