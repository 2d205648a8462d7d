"""Packs what a run on the toy world trained into assets/toy/assistant, the model that chat.py takes by default.

    python -m utils.toy.assistant --run runs/demo

Only the trained weights are stored, in bfloat16: adapters, embeddings, projection and mask decoder. `load_model` puts
them on top of the base weights beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from model.checkpoints.checkpoint import open_trained
from model.checkpoints.layouts.base import SETTINGS_FOLDER
from model.errors import UserError
from utils.common.commands import command, script_parser
from utils.common.files import write_whole
from utils.common.paths import path_flag
from utils.config.inference import TOY_ASSISTANT

MAX_BYTES = 4_000_000
# What `load_model` and the merge read of a run's settings; paths are looked up in the folders above.
RUN_SETTINGS = ("lora_alpha", "lora_r", "num_all_classes")
BASE = {
    "version": "assets/toy/llava",
    "vision_tower": "assets/toy/clip",
    "vision_pretrained": "assets/toy/sam2",
    "precision": "fp32",
}


@command("utils.toy.assistant")
def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("utils.toy.assistant", __doc__)
    parser.add_argument("--run", type=path_flag, default=Path("runs/demo"), help="folder of the run")
    parser.add_argument("--out", type=path_flag, default=Path(TOY_ASSISTANT), help="folder to write")
    args = parser.parse_args(argv)
    size = pack(args.run, args.out)
    print(f"{args.out}: {size / 1e6:.1f} MB of trained weights")
    return 0


def pack(run: Path, out: Path) -> int:
    """Writes the folder; returns the bytes of its weights.

    Raises:
        UserError: the weights are larger than what is shipped, so they are not a toy's.
    """
    trained = open_trained(run / "ckpt_model" if (run / "ckpt_model").is_dir() else run)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in trained.weights.items()}
    data = save(weights, metadata={"format": "pt"})
    if len(data) > MAX_BYTES:
        raise UserError(f"--run {run} trained {len(data):,} bytes of weights, of at most {MAX_BYTES:,}")
    settings: dict[str, Any] = {**BASE, **{name: trained.settings.run[name] for name in RUN_SETTINGS}}
    write_whole(out / "model.safetensors", data)
    write_whole(out / SETTINGS_FOLDER / "run.yaml", yaml.safe_dump(settings, sort_keys=False))
    write_whole(
        out / SETTINGS_FOLDER / "config.json",
        json.dumps(trained.settings.config, indent=1, sort_keys=True) + "\n",
    )
    return len(data)


if __name__ == "__main__":
    sys.exit(main())
