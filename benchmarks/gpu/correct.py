"""The toy model on the GPU against the same model on the CPU in float32: encoders, states, masks, losses, gradients,
decisions and words; and packed rows against single ones.

Differences are |a - b| / |b| of whole tensors. Float32 on a GPU sums in another order; bfloat16 keeps 8 bits, so
that an entry is off by up to 0.4 % at each rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Results
from benchmarks.models import build
from benchmarks.scenes import Scene, make_scene
from model.lasagna import LasagnaForConditionalGeneration
from utils.data.class_lists import load_class_list

NUM_IMAGES, NUM_CONVERSATIONS = 2, 5
# Largest differences: (float32, bfloat16).
STATES, LOSSES, GRADIENTS = (1e-4, 0.03), (1e-5, 0.01), (1e-3, 0.1)
PACKING = 1e-4  # losses and gradients of packed rows against single ones, float32
NUM_CLASSES, NUM_NEW_TOKENS = 40, 24


def measure(machine: Machine, results: Results) -> None:
    """Adds the part "correct"."""
    with exact_float32():
        reference, processor = build("tiny", lora=True)
        scene = make_scene(processor, NUM_IMAGES, NUM_CONVERSATIONS)
        expected = everything(reference, scene)
        said = answers_of(reference, scene)
        for index, dtype in enumerate((torch.float32, torch.bfloat16)):
            name = str(dtype).removeprefix("torch.")
            model, _ = build("tiny", lora=True, device=machine.device, dtype=dtype)
            found = everything(model, scene)
            for what, value in expected.items():
                kind = GRADIENTS if what.startswith("gradient") else LOSSES if what == "losses" else STATES
                results.add("correct", f"{what}, {name} against the CPU, difference",
                            difference(found[what], value), bar=kind[index], at_least=False)  # fmt: skip
            compare_answers(results, name, answers_of(model, scene), said, is_exact=dtype == torch.float32)
        compare_packing(machine, results, scene)


def everything(
    model: LasagnaForConditionalGeneration, scene: Scene, *, packed: bool = True
) -> dict[str, Tensor]:
    """What a training step computes, by name, on the CPU in float64."""
    processor, device = model.processor, model.device
    inputs = processor.collate(
        scene.images, scene.conversations, scene.owners, masks=scene.masks, pack_rows=packed
    ).to(device)
    model.train()
    output = model(**inputs.fields(), return_predictions=True)
    output.loss.backward()
    images = model.encode_images(
        inputs.vlm_images,
        inputs.placeholders,
        inputs.token_grids,
        inputs.resized_sizes,
        inputs.original_sizes,
        sam_images=inputs.sam_images,
    )
    at_seg = output.last_hidden_state[inputs.seg_rows, inputs.seg_columns - 1]
    terms = output.losses
    found = {
        "CLIP features": torch.stack(images.features.tokens),
        "SAM embeddings": images.embeddings[0],
        "states before [SEG]": at_seg,
        "mask logits": torch.cat([masks.flatten() for masks in output.masks]),
        "losses": torch.stack([terms.total, terms.cross_entropy, terms.mask_bce, terms.dice]),
    } | gradients_of(model)
    model.zero_grad(set_to_none=True)
    return {name: value.detach().double().cpu() for name, value in found.items()}


def gradients_of(model: LasagnaForConditionalGeneration) -> dict[str, Tensor]:
    """One long vector for each group of trained weights."""
    groups = {
        "adapters": "lora_", "embeddings": "embed_tokens", "lm_head": "lm_head", "projection": "seg_projector",
        "mask decoder": "mask_decoder",
    }  # fmt: skip
    return {
        f"gradients of {name}": torch.cat(
            [p.grad.flatten() for key, p in model.named_parameters() if part in key and p.grad is not None]
        )
        for name, part in groups.items()
    }


def answers_of(model: LasagnaForConditionalGeneration, scene: Scene) -> dict[str, Any]:
    """Choices of a complex query about each image, and the words of an answer to one of its questions."""
    names = load_class_list("ade20k")[:NUM_CLASSES]
    found = model.segment_batch(scene.images, [names] * len(scene.images))
    questions = [scene.conversations[scene.owners.index(index)].prompt for index in range(len(scene.images))]
    chats = model.generate_batch(scene.images, questions, max_new_tokens=NUM_NEW_TOKENS)
    return {
        "choices": [present for answer in found for present in answer.present],
        "tokens": [token for chat in chats for token in chat.token_ids],
    }


def compare_answers(
    results: Results, name: str, found: dict[str, Any], expected: dict[str, Any], *, is_exact: bool
) -> None:
    """Shares of equal decisions; the toy base is not trained to decide, so that near-ties may flip in bfloat16."""
    abouts = {"choices": f"choices of {NUM_CLASSES} classes", "tokens": "tokens of free answers"}
    for what, about in abouts.items():
        mine, theirs = found[what], expected[what]
        same = sum(a == b for a, b in zip(mine, theirs, strict=False)) / max(len(mine), len(theirs))
        results.add(
            "correct", f"{about}, {name} as on the CPU, share", same, **({"bar": 1.0} if is_exact else {})
        )


def compare_packing(machine: Machine, results: Results, scene: Scene) -> None:
    """One row for all conversations of an image, against a row each."""
    model, _ = build("tiny", lora=True, device=machine.device)
    single = everything(model, scene, packed=False)
    for attention in ("sdpa", "flex_attention") if machine.on_gpu else ("sdpa",):
        model.backbone.attend_with(attention)
        packed = results.attempt("correct", f"packed, {attention}", lambda: everything(model, scene))
        for what, value in (packed or {}).items():
            if what == "losses" or what.startswith("gradient"):
                results.add("correct", f"{what}, packed with {attention} against single rows, difference",
                            difference(value, single[what]), bar=PACKING, at_least=False)  # fmt: skip


def difference(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; NaN for NaN."""
    return float((found - expected).norm() / expected.norm())


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, whose products keep 10 bits."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolution
