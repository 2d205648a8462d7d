"""The models that the benchmarks run: "tiny", LLaVA and CLIP of the toy world, "medium" and "7b", random weights.

    model, processor = build("medium", lora=True)
    model, processor = build("7b", device="cuda", dtype=torch.bfloat16)

Medium is LLaMA 512 wide with 8 layers and 32,000 tokens, CLIP ViT-L/14 at 224 pixels (256 patches) and SAM ViT-B at
1024 pixels: the towers have real sizes, and the language model is small enough to be measured on one core. "7b" is
LLaMA-7B with the same CLIP and SAM ViT-H, the sizes of the paper; its weights are created on the device. Random
weights take the same time as trained ones; what depends on the weights, such as the number of decoding passes, is
measured on tiny, whose SAM alone is random: the reference draws masks with segment_anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedTokenizerBase

from benchmarks import TOY
from model.checkpoints.assemble import DEFAULT_FORMAT, build_processor, images_of_llava
from model.checkpoints.load import load_model
from model.config import LasagnaConfig
from model.decoders.sam import SamSettings, build_sam
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens, token_ids
from utils.costs.memory import default_dtype
from utils.costs.model_sizes import CLIP_LARGE, LLAMA, LLAMA_VOCABULARY, SAM

MEDIUM_LLAMA = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
}  # fmt: skip
TINY_SAM = SamSettings(
    image_size=256, encoder_dim=192, encoder_depth=4, encoder_num_heads=6, encoder_mlp_dim=768,
    encoder_global_blocks=(1, 3), encoder_window_size=8, prompt_embed_dim=128, decoder_mlp_dim=512, iou_head_dim=128,
)  # fmt: skip
SIZES = ("tiny", "medium")  # those that take minutes on a CPU


@dataclass(frozen=True, kw_only=True)
class RandomSize:
    """Sizes of a model with random weights; its CLIP is ViT-L/14 at 224 pixels."""

    llama: dict[str, int]
    sam: dict[str, Any]


RANDOM_SIZES = {
    "medium": RandomSize(llama=MEDIUM_LLAMA, sam=SAM["vit_b"]),
    "7b": RandomSize(llama=LLAMA["7b"], sam=SAM["vit_h"]),
}
# A 150-class query and its answer, after the image.
MAX_POSITIONS = 4096


def build(
    size: str,
    *,
    lora: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[LasagnaForConditionalGeneration, LasagnaProcessor]:
    """A model with its processor.

    Args:
        size: "tiny" or one of `RANDOM_SIZES`.
        lora: with adapters (without dropout) and the recipe's trainable parts, in training mode; otherwise frozen and
            in evaluation mode.
        seed: of random weights: the projection and the adapters of tiny, all weights of the others.
        device, dtype: of the weights.

    Raises:
        ValueError: there is no such size.
    """
    known = ("tiny", *RANDOM_SIZES)
    if size not in known:
        raise ValueError(f"unknown size {size!r}; known: {', '.join(known)}")
    torch.manual_seed(seed)
    if size == "tiny":
        model = load_tiny(seed, device, dtype)
    else:
        model = make_random(RANDOM_SIZES[size], device=device, dtype=dtype)
    if lora:
        model.vlm = add_lora(model.vlm, dropout=0.0)
        mark_trainable(model)
    else:
        model.requires_grad_(False)
    return model.train(lora), model.processor


def load_tiny(seed: int, device: str | torch.device, dtype: torch.dtype) -> LasagnaForConditionalGeneration:
    """The toy's LLaVA and CLIP with a random SAM, as at the start of a run of the paper's recipe."""
    sam = build_sam(TINY_SAM)
    fill_positions(sam.image_encoder)
    with TemporaryDirectory() as folder:
        torch.save(sam.state_dict(), f"{folder}/sam.pth")
        parts = {"vision_tower": str(TOY / "clip"), "sam": f"{folder}/sam.pth"}
        model, _ = load_model(
            TOY / "llava", dtype=dtype, device=device, attn_implementation="sdpa", seed=seed, **parts
        )
    return model


def make_random(
    size: RandomSize, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LasagnaForConditionalGeneration:
    """Random weights from torch's global generator, created on their device."""
    format = SequenceFormat.named(DEFAULT_FORMAT)
    tokenizer = full_tokenizer(format)
    ids = token_ids(tokenizer, format)
    vision = CLIPVisionConfig(**CLIP_LARGE, image_size=224)
    text = LlamaConfig(
        **size.llama,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=ids.pad,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
    )
    config = LasagnaConfig(
        vlm_config=LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=ids.image,
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        ),
        sam_config=size.sam,
        sequence_format=format.to_dict(),
        image_token_id=ids.image,
        seg_token_id=ids.seg,
        neg_token_id=ids.neg,
    )
    config._attn_implementation = "sdpa"
    with torch.device(device), default_dtype(dtype):
        model = LasagnaForConditionalGeneration(config)
    fill_positions(model.sam.image_encoder)
    model.processor = build_processor(config, tokenizer, images_of_llava(config, clip={}))
    return model


def full_tokenizer(format: SequenceFormat) -> PreTrainedTokenizerBase:
    """The toy tokenizer, padded with unused tokens to LLaMA's vocabulary size, and the special tokens."""
    tokenizer: Any = load_tokenizer(TOY / "llava")
    tokenizer.add_tokens([f"filler{index}" for index in range(LLAMA_VOCABULARY - len(tokenizer))])
    add_special_tokens(tokenizer, format)
    return tokenizer


@torch.no_grad()
def fill_positions(encoder: torch.nn.Module) -> None:
    """Small random position embeddings: segment_anything's initial zeros would hide an error in them."""
    for name, parameter in encoder.named_parameters():
        if "pos_embed" in name or "rel_pos" in name:
            parameter.normal_(std=0.02)
