"""Ask a model about images: the answer, its masks, and an overlay.

    python chat.py                          # a toy model, to try it at once
    python chat.py --version FOLDER
    python chat.py --version FOLDER --image street.jpg \\
      --prompt "Can you segment the red car in this image?"
    python chat.py --version FOLDER --image street.jpg \\
      --classes "person, tree, dog" --vis_save_path answers
    python chat.py --version FOLDER --image 'photos/*.jpg' --classes dog --json

With --classes the model says of each class whether it is in the image:
"person [SEG], tree [SEG], dog [NEG].". Each [SEG] of an answer is one mask,
written to --vis_save_path as street_mask_1_person.png (255 inside, 0 outside),
beside street_overlay.png. Without --image it asks for images and questions
until you leave; a question may refer to the answers before it.
--web opens a page for browsers instead, --serve answers requests over HTTP.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from utils.common.command_line import answer_at_once, parse_config
from utils.config.chat import ChatConfig

if __name__ == "__main__":
    answer_at_once("chat.py", ChatConfig, __doc__)  # slow imports follow

from model.checkpoints.load import load_model
from model.checkpoints.sums import verify_sums
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from utils.common.commands import command
from utils.common.distributed import device_of
from utils.common.logs import start_logging
from utils.common.paths import check_writable
from utils.config.inference import TOY_REMARK
from utils.evaluation.maps import check_has_maps, check_maps
from utils.serving.lines import check_question, images_asked
from utils.serving.serve import check_packages, check_server, examples_of, listen, serve
from utils.serving.terminal import ask_about_images, converse


@command("chat.py")
def main(argv: Sequence[str] | None = None) -> int:
    try:
        return answer(parse_config(ChatConfig, argv, about=__doc__))
    except KeyboardInterrupt:
        print("chat.py: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def answer(config: ChatConfig) -> int:
    """Answers, as the flags say, and returns an exit code."""
    start_logging()
    check_server(config)
    check_question(config)
    images = images_asked(config.image)
    if config.serve or config.web:
        check_packages(config)
        examples_of(config)
        with listen(config) as listener:
            serve(load(config), config, listener)
        return 0
    check_writable(config.vis_save_path, "--vis_save_path")
    model = load(config)
    if not images:
        converse(model, config)
    elif num_unreadable := ask_about_images(model, images, config):
        raise UserError(f"{num_unreadable} of {len(images)} images could not be read; they are named above")
    return 0


def load(config: ChatConfig) -> LasagnaForConditionalGeneration:
    """The model on this machine's device."""
    if config.verify:
        verify_sums(config.model_folder, "--version")
    if not config.version:
        print(TOY_REMARK.splitlines()[0] if config.web or config.serve else TOY_REMARK, file=sys.stderr)
    if config.save_maps:
        check_maps(config.model_folder)
    model, _ = load_model(config.model_folder, device=device_of(), **config.loading)
    if config.save_maps:
        check_has_maps(model, config.model_folder)
    return model


if __name__ == "__main__":
    sys.exit(main())
