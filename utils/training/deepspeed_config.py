"""TrainConfig -> the configuration that deepspeed.initialize takes."""

from __future__ import annotations

from typing import Any

import torch

from model.errors import UserError
from utils.config.training import TrainConfig


def deepspeed_config(config: TrainConfig, num_processes: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run: optimizer, schedule, precision, ZeRO.

    Raises:
        ValueError: fp16 on a machine without a GPU.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu and config.precision == "fp16":
        raise UserError("--precision fp16 needs a GPU; choose bf16 or fp32")
    optimizer = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
        # DeepSpeed's own Adam compiles for minutes at the first start, and needs a compiler.
        "torch_adam": True,
        "fused": True,
    }
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.grad_accumulation_steps,
        "train_batch_size": config.batch_size * config.grad_accumulation_steps * num_processes,
        "optimizer": {"type": "AdamW", "params": optimizer},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "total_num_steps": max(config.num_steps, config.warmup_steps + 1),
                "warmup_min_lr": 0.0,
                "warmup_max_lr": config.lr,
                "warmup_num_steps": max(config.warmup_steps, 2),
                "warmup_type": "linear",
            },
        },
        "fp16": {"enabled": config.precision == "fp16"},
        "bf16": {"enabled": config.precision == "bf16"},
        "gradient_clipping": config.grad_clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            "contiguous_gradients": True,
            # With it DeepSpeed waits for the GPU after each backward, and one process has nothing to overlap.
            "overlap_comm": not on_cpu and num_processes > 1,
            "reduce_scatter": True,
            "reduce_bucket_size": int(5e8) if not on_cpu else int(5e7),
            "allgather_bucket_size": int(5e8) if not on_cpu else int(5e7),
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
