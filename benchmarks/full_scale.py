"""The 7B model on a CPU: merge, load, answer about one image; seconds and peak memory of each step.

    python -m benchmarks.full_scale --folder /a/disk/with/40/GB     # LLaMA-7B, CLIP ViT-L/14, SAM ViT-H in bfloat16
    python -m benchmarks.full_scale --scale tiny                    # the same steps in seconds

Weights are random and written shard by shard in the published layouts: an original LLaVA, a CLIP folder, a SAM file,
and the output of zero_to_fp32.py for a run's trained weights. Each step is its own process; its peak is the kernel's
peak resident size, mapped files included. Prints Markdown and writes runs/benchmarks/full_scale.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import merge_lora_weights_and_save_hf_model as merge_script
from benchmarks import TOY, script_parser
from benchmarks.measure import RESET, resident, write_json
from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.checkpoints.load import load_model
from model.checkpoints.write import write_shards
from model.config import LasagnaConfig
from model.decoders.sam import SamSettings, build_sam
from model.lasagna import LasagnaForConditionalGeneration
from model.lora import add_lora, mark_trainable
from model.text.tokenizer_files import load_tokenizer, save_tokenizer
from utils.config.training import TrainConfig
from utils.costs.model_sizes import CLIP_LARGE, LLAMA, LLAMA_VOCABULARY, model_config

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
TOKENIZER = TOY / "llava"
GOAL_GIGABYTES, GOAL_MERGE = 20.0, 1.3  # GB in every step; times the merged model's bytes in the merge
SHARD_SIZE = 2_000_000_000
LORA_RANK = 8
CLASSES = ("person", "tree", "dog")
IMAGE_SIZE = (480, 640)  # height, width

# Sizes of the three parts: LLaMA, CLIP, SAM.
SCALES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "full": ({**LLAMA["7b"], "vocab_size": LLAMA_VOCABULARY}, {**CLIP_LARGE, "image_size": 224}, {}),
    "tiny": (
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 1700},
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
         "image_size": 28, "patch_size": 14},
        {"image_size": 64, "encoder_dim": 16, "encoder_depth": 2, "encoder_num_heads": 2, "encoder_mlp_dim": 32,
         "encoder_global_blocks": (1,), "encoder_window_size": 3, "prompt_embed_dim": 32, "decoder_mlp_dim": 32,
         "iou_head_dim": 16},
    ),
}  # fmt: skip


# ----------------------------------------------------------------------------------- random checkpoints


def random_weight(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Small normal values; norm scales are one and biases zero, so that activations neither vanish nor explode."""
    if len(shape) < 2:
        return (torch.zeros if name.endswith("bias") else torch.ones)(tuple(shape), dtype=dtype)
    return torch.empty(tuple(shape), dtype=dtype).normal_(std=0.02)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def write_folder(folder: Path, shapes: dict[str, Sequence[int]], dtype: torch.dtype) -> None:
    """Random weights of these shapes, one shard in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
    write_shards(folder, sizes, lambda name: random_weight(name, shapes[name], dtype), shard_size=SHARD_SIZE)


def make(folder: Path, scale: str) -> None:
    """The three parts and the trained weights."""
    torch.manual_seed(0)
    llama, clip, sam = SCALES[scale]
    write_clip(folder / "clip", CLIPVisionConfig(**clip))
    write_llava(folder / "llava", LlamaConfig(**llama), clip["hidden_size"])
    write_sam(folder / "sam.pth", SamSettings(**sam))
    write_training(folder)


def write_clip(folder: Path, config: CLIPVisionConfig) -> None:
    tower = on_meta(lambda: CLIPVisionModel(config))
    write_folder(folder, {name: value.shape for name, value in tower.state_dict().items()}, torch.bfloat16)
    config.save_pretrained(folder)
    side = config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def write_llava(folder: Path, config: LlamaConfig, clip_dim: int) -> None:
    """An original LLaVA v1 with the toy tokenizer, padded to the full vocabulary."""
    llama = on_meta(lambda: LlamaForCausalLM(config))
    shapes: dict[str, Sequence[int]] = {name: value.shape for name, value in llama.state_dict().items()}
    shapes["model.mm_projector.weight"] = (config.hidden_size, clip_dim)
    shapes["model.mm_projector.bias"] = (config.hidden_size,)
    write_folder(folder, shapes, torch.bfloat16)
    content = {
        **{name: getattr(config, name) for name in SCALES["full"][0]},
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "mm_vision_select_layer": -2,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    tokenizer = load_tokenizer(TOKENIZER)
    tokenizer.add_tokens([f"filler{index}" for index in range(config.vocab_size - len(tokenizer))])
    save_tokenizer(tokenizer, folder)


def write_sam(path: Path, settings: SamSettings) -> None:
    """A SAM file; its buffers are computed, not random."""
    sam = on_meta(lambda: build_sam(settings))
    weights = {
        name: random_weight(name, value.shape, torch.bfloat16) for name, value in sam.state_dict().items()
    }
    torch.save(weights, path)


def write_training(folder: Path) -> None:
    """Trained weights in float32, as zero_to_fp32.py writes them, and the run's settings beside them."""
    shape = shape_of(folder)
    model = on_meta(lambda: LasagnaForConditionalGeneration(shape))
    model.vlm = add_lora(model.vlm, LORA_RANK)
    names = set(mark_trainable(model))
    weights = {
        name: random_weight(name, value.shape, torch.float32)
        for name, value in model.state_dict().items()
        if name in names
    }
    torch.save(weights, folder / "pytorch_model.bin")
    settings = folder / SETTINGS_FOLDER
    shape.save_pretrained(settings)
    run = {
        "version": str(folder / "llava"),
        "vision_tower": str(folder / "clip"),
        "vision_pretrained": str(folder / "sam.pth"),
        "lora_r": LORA_RANK,
        "lora_alpha": 16.0,
    }
    (settings / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")


def shape_of(folder: Path) -> LasagnaConfig:
    """The configuration of the model that the parts make."""
    config = TrainConfig(
        version=str(folder / "llava"),
        vision_tower=str(folder / "clip"),
        vision_pretrained=str(folder / "sam.pth"),
    )
    return model_config(config)


# ------------------------------------------------------------------------------------------- the steps


def merge(folder: Path) -> None:
    """The merge script, as a user runs it."""
    code = merge_script.main(
        ["--weight", str(folder / "pytorch_model.bin"), "--save_path", str(folder / "merged")]
    )
    if code:
        raise SystemExit(code)


def reload_and_answer(folder: Path) -> list[dict[str, Any]]:
    """Loads the merged folder as a user does, then answers one complex query about one image."""
    steps: list[dict[str, Any]] = []
    model = measured(steps, "load", lambda: load_model(folder / "merged")[0])
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    found = measured(steps, "answer", lambda: model.segment(image, CLASSES))
    assert len(found.present) == len(CLASSES)
    return steps


def measured(steps: list[dict[str, Any]], name: str, run: Callable[[], T]) -> T:
    """Runs a step and appends its seconds and this process's peak memory during it."""
    if RESET.is_file():
        RESET.write_text("5")  # resets the peak to the current resident size
    start = time.monotonic()
    result = run()
    seconds = time.monotonic() - start
    steps.append({"step": name, "seconds": seconds, "peak_gigabytes": resident("VmHWM") / 1e9})
    return result


def run_step(step: str, folder: Path, scale: str) -> list[dict[str, Any]]:
    """One step in this process."""
    steps: list[dict[str, Any]] = []
    if step == "make":
        measured(steps, "make the random weights", lambda: make(folder, scale))
    elif step == "merge":
        measured(steps, "merge", lambda: merge(folder))
    else:
        steps = reload_and_answer(folder)
    return steps


def run_apart(step: str, folder: Path, scale: str, num_threads: int) -> list[dict[str, Any]]:
    """One step in its own process, so that its peak is not that of an earlier step."""
    command = [sys.executable, "-m", "benchmarks.full_scale", "--step", step, "--folder", str(folder),
               "--scale", scale, "--num_threads", str(num_threads)]  # fmt: skip
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


# ---------------------------------------------------------------------------------------------- output


def to_table(steps: Sequence[dict[str, Any]], merged_gigabytes: float) -> str:
    """Markdown."""
    lines = ["| step | seconds | peak memory, GB | goal |", "|---|---:|---:|---|"]
    for step in steps:
        goal = f"<= {GOAL_GIGABYTES:g}"
        if step["step"] == "merge":
            goal = f"<= {GOAL_MERGE * merged_gigabytes:.1f} ({GOAL_MERGE:g} x the model)"
        goal = "" if step["step"].startswith("make") else goal
        lines.append(f"| {step['step']} | {step['seconds']:.1f} | {step['peak_gigabytes']:.2f} | {goal} |")
    return "\n".join((*lines, f"\nThe merged folder holds {merged_gigabytes:.2f} GB of weights."))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = script_parser("benchmarks.full_scale", __doc__)
    parser.add_argument("--scale", default="full", choices=list(SCALES), help="sizes of the parts")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the checkpoints go; a temporary folder if not given"
    )
    parser.add_argument("--num_threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--in_process", action="store_true", help="all steps in this process; peaks add up")
    parser.add_argument("--step", default="", choices=["", "make", "merge", "use"], help="one step only")
    parser.add_argument("--out", default="runs/benchmarks/full_scale.json", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    if arguments.step:
        print(json.dumps(run_step(arguments.step, arguments.folder, arguments.scale)))
        return 0
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="full-scale-", dir=arguments.folder) as place:
        folder, steps = Path(place).resolve(), []
        for step in ("make", "merge", "use"):
            if arguments.in_process:
                steps += run_step(step, folder, arguments.scale)
            else:
                steps += run_apart(step, folder, arguments.scale, arguments.num_threads)
        size = sum(file.stat().st_size for file in (folder / "merged").glob("*.safetensors")) / 1e9
    print(to_table(steps, size))
    content = {"scale": arguments.scale, "merged_gigabytes": size, "steps": steps, "torch": torch.__version__}
    write_json(arguments.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
