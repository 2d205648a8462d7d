"""Reproduces the toy base weights: a few hours of CPU, resumable.

    python -m utils.toy.pretrain --out assets/toy                    # all stages, one after the other
    python -m utils.toy.pretrain --out assets/toy --stages clip      # one of them

`language` reads the tower that `clip` wrote, `smolvlm` both, `sam2` the SAM that `sam` left in --work; `clip` and
`sam` may run in parallel.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.common.commands import command, script_parser
from utils.common.paths import path_flag, writable_folder
from utils.toy.pretrain.common import Trainer

NUM_STEPS = {"clip": 3500, "sam": 8050, "sam2": 4600, "language": 4500, "smolvlm": 700}  # of each stage


@command("utils.toy.pretrain")
def main(argv: Sequence[str] | None = None) -> None:
    parser = script_parser("utils.toy.pretrain", __doc__)
    parser.add_argument("--out", type=path_flag, default=Path("assets/toy"), help="folder of the weights")
    parser.add_argument(
        "--work", type=path_flag, default=Path("runs/toy_pretrain"), help="folder of the resumable state"
    )
    parser.add_argument("--stages", nargs="+", choices=list(NUM_STEPS), default=list(NUM_STEPS), metavar="STAGE",
                        help=f"by default all: {', '.join(NUM_STEPS)}")  # fmt: skip
    for stage, num_steps in NUM_STEPS.items():
        parser.add_argument(f"--{stage}_steps", type=int, default=num_steps, help=f"steps of {stage}")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it trains")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    writable_folder(args.out, "--out")
    writable_folder(args.work, "--work")
    trainer = Trainer(folder=args.work, device=args.device, workers=args.workers)
    if "clip" in args.stages:
        from utils.toy.pretrain.clip import pretrain_clip

        pretrain_clip(args.out / "clip", trainer, num_steps=args.clip_steps)
    teacher = args.work / "sam.pth"
    if "sam" in args.stages:
        from utils.toy.pretrain.sam import pretrain_sam

        pretrain_sam(teacher, trainer, num_steps=args.sam_steps)
    if "sam2" in args.stages:
        from utils.toy.pretrain.sam2 import pretrain_sam2

        pretrain_sam2(args.out / "sam2", teacher, trainer, num_steps=args.sam2_steps)
    if "language" in args.stages:
        from utils.toy.pretrain.language import pretrain_language

        pretrain_language(args.out / "llava", args.out / "clip", trainer, num_steps=args.language_steps)
    if "smolvlm" in args.stages:
        from utils.toy.pretrain.smolvlm import pretrain_smolvlm

        pretrain_smolvlm(args.out, trainer, num_steps=args.smolvlm_steps)


if __name__ == "__main__":
    sys.exit(main())
