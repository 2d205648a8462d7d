"""Reproduces the toy base weights: a few hours of CPU, resumable.

python -m utils.toy.pretrain --out assets/toy                    # all stages, one after the other
python -m utils.toy.pretrain --out assets/toy --stages clip      # one of them

`language` reads the tower that `clip` wrote, `smolvlm` both; `sam` is independent and may run in parallel.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.common.commands import Parser, command
from utils.common.paths import path_flag, writable_folder

STAGES = ("clip", "sam", "language", "smolvlm")


@command("utils.toy.pretrain")
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m utils.toy.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=path_flag, default=Path("assets/toy"))
    parser.add_argument("--work", type=path_flag, default=Path("runs/toy_pretrain"), help="resumable state")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--clip_steps", type=int, default=3500)
    parser.add_argument("--sam_steps", type=int, default=8050)
    parser.add_argument("--language_steps", type=int, default=4500)
    parser.add_argument("--smolvlm_steps", type=int, default=700)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    writable_folder(args.out, "--out")
    writable_folder(args.work, "--work")
    if "clip" in args.stages:
        from utils.toy.pretrain.clip import pretrain_clip

        pretrain_clip(args.out / "clip", args.work, num_steps=args.clip_steps)
    if "sam" in args.stages:
        from utils.toy.pretrain.sam import pretrain_sam

        pretrain_sam(args.out / "sam_toy.pth", args.work, num_steps=args.sam_steps)
    if "language" in args.stages:
        from utils.toy.pretrain.language import pretrain_language

        pretrain_language(args.out / "llava", args.out / "clip", args.work, num_steps=args.language_steps)
    if "smolvlm" in args.stages:
        from utils.toy.pretrain.smolvlm import pretrain_smolvlm

        pretrain_smolvlm(args.out, args.work, num_steps=args.smolvlm_steps)


if __name__ == "__main__":
    sys.exit(main())
