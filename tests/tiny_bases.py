"""Tiny random members of the families of image-text-to-text models, written as their folders on the hub are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
)

HIDDEN_DIM = 32
VOCABULARY = 420  # rows of the matrices; the tokenizer has fewer tokens
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
CHAT_ML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS = (
    "{{ '<|im_start|>' }}{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SENTENCES = [
    "Can you segment the person, tree, dog, cat in this image?",
    "person [SEG], tree [SEG], dog [NEG], sky [SEG].",
    "It is the grass next to the river. user assistant User Assistant system",
]


def write_tokenizer(special: list[str], template: str, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with these special tokens at its end, as Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def qwen_tokenizer(*more: str, image: str = "<|image_pad|>") -> PreTrainedTokenizerFast:
    """With the special tokens of Qwen2 and its children."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    template = CHAT_ML.replace("IMAGE", image)
    return write_tokenizer(special, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_SIZE = {"shortest_edge": 4 * 32**2, "longest_edge": 16 * 32**2}


def token_ids_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that a config of the Qwen family names."""
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("vision_start", "vision_end", "image", "video"), QWEN_VISION, strict=True)
    }


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer = qwen_tokenizer(*QWEN_VISION, image="<|vision_start|><|image_pad|><|vision_end|>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": HIDDEN_DIM,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1], "initializer_range": 0.2,
        },
        tie_word_embeddings=True,
        **token_ids_of(tokenizer),
    )  # fmt: skip
    images = Qwen2VLImageProcessor(patch_size=16, size=QWEN_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return config, Qwen3VLProcessor(
        images, tokenizer, Qwen3VLVideoProcessor(), chat_template=tokenizer.chat_template
    )


def qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer = qwen_tokenizer(*QWEN_VISION, image="<|vision_start|><|image_pad|><|vision_end|>")
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": HIDDEN_DIM,
            "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.2,
        },
        **token_ids_of(tokenizer),
    )  # fmt: skip
    images = Qwen2VLImageProcessor(size={"shortest_edge": 4 * 28**2, "longest_edge": 16 * 28**2})
    return config, Qwen2_5_VLProcessor(
        images, tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template
    )


def qwen3_5() -> tuple[Any, Any]:
    tokenizer = qwen_tokenizer(*QWEN_VISION, image="<|vision_start|><|image_pad|><|vision_end|>")
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.25,
    }
    config = Qwen3_5Config(
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "rope_parameters": rope,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": HIDDEN_DIM,
            "num_position_embeddings": 16,
            "initializer_range": 0.2,
        },
        **token_ids_of(tokenizer),
    )
    images = Qwen2VLImageProcessor(patch_size=16, size=QWEN_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    template = tokenizer.chat_template
    return config, Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=template)


def internvl() -> tuple[Any, Any]:
    tokenizer = qwen_tokenizer("<img>", "</img>", "<IMG_CONTEXT>", "<video>", image="<IMG_CONTEXT>\n")
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
        chat_template=tokenizer.chat_template,
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={**VISION, "image_size": [64, 64], "patch_size": [16, 16]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessor(
        size={"height": 64, "width": 64}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=4, chat_template=tokenizer.chat_template
    )
    return config, processor


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = qwen_tokenizer("<image>", "<video>", image="<image>\n")
    pinpoints = [[64, 64], [64, 128], [128, 64]]
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            "model_type": "siglip_vision_model", **VISION, "image_size": 64, "patch_size": 16,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    images = LlavaOnevisionImageProcessor(
        size={"height": 64, "width": 64}, image_grid_pinpoints=pinpoints, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )  # fmt: skip
    processor = LlavaOnevisionProcessor(
        images, tokenizer, LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return config, processor


def idefics_tokenizer() -> PreTrainedTokenizerFast:
    """With the special tokens of Idefics3 and SmolVLM."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    image = ["<fake_token_around_image>", "<image>", "<global-img>", *places]
    special = ["<|im_start|>", "<end_of_utterance>", "<pad>", *image]
    named = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<pad>"}
    return write_tokenizer(special, IDEFICS, **named)


def idefics(config: type, images: type) -> tuple[Any, Any]:
    tokenizer = idefics_tokenizer()
    found = config(
        text_config={"model_type": "llama", **TEXT},
        vision_config={**VISION, "image_size": 64, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    reader = images(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    processor = Idefics3Processor(reader, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    return found, processor


GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma3() -> tuple[Any, Any]:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    ends = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=write_tokenizer(special, GEMMA, **ends).backend_tokenizer,
        extra_special_tokens=named,
        chat_template=GEMMA,
        **ends,
    )
    text = {**TEXT, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
    config = Gemma3Config(
        text_config={**text, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        vision_config={**VISION, "image_size": 64, "patch_size": 16, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    images = Gemma3ImageProcessor(size={"height": 64, "width": 64})
    template = tokenizer.chat_template
    return config, Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_vl": qwen3_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "internvl": internvl,
    "llava_onevision": llava_onevision,
    "gemma3": gemma3,
    "qwen3_5": qwen3_5,
    "smolvlm": lambda: idefics(SmolVLMConfig, SmolVLMImageProcessor),
    "idefics3": lambda: idefics(Idefics3Config, Idefics3ImageProcessor),
}


def write_base_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder with weights, processor and tokenizer; random weights that depend only on the seed."""
    config, processor = FAMILIES[family]()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
