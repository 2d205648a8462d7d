"""Ask a model about an image: the answer, its masks, and an overlay.

    python chat.py --version FOLDER
    python chat.py --version FOLDER --image street.jpg \\
      --prompt "Can you segment the red car in this image?"
    python chat.py --version FOLDER --image street.jpg \\
      --classes "person, tree, dog" --vis_save_path answers

With --classes the model says of each class whether it is in the image:
"person [SEG], tree [SEG], dog [NEG].". Each [SEG] of an answer is one mask,
written to --vis_save_path as street_mask_1_person.png (255 inside, 0 outside),
beside street_overlay.png. Without --image it asks for images and questions
until you leave.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from model.checkpoints.load import load_model
from model.checkpoints.sums import verify_sums
from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import EncodedImage
from model.text.format import SequenceFormat, spoken
from utils.common.commands import command, one_line
from utils.common.distributed import device_of
from utils.common.files import write_png
from utils.common.logs import start_logging
from utils.common.paths import check_writable, resolve, shortened, writable_folder
from utils.common.settings import parse_config
from utils.common.terminal import printable
from utils.config.inference import ChatConfig
from utils.data.files import names_in
from utils.data.images import IMAGE_SUFFIXES, read_image
from utils.evaluation.metrics import label_map
from utils.reports.colours import MASK_COLOURS, Colour, class_colour
from utils.reports.drawing import LegendEntry, annotate

COMMANDS = {"image": "a path", "classes": "class names", "help": "", "quit": ""}
HELP = """\
  PATH               open an image; or drop the file here, or :image PATH
  :classes a, b, c   segment these classes, and say which are absent
  :help, :quit       show this help, leave
  anything else      a question about the image"""
MAX_STEM_BYTES, MAX_CLASS_BYTES = 120, 80  # of a file name, which holds 255
MAX_PROMPT_BYTES = 40  # of an image's name before "> "


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said about an image."""

    text: str
    names: tuple[str, ...]  # of each mask; "" when the text does not name it
    masks: Tensor  # (num_masks, height, width) float32 logits
    absent: tuple[str, ...] = ()  # classes asked for and answered as absent
    remark: str = ""  # what of the answer could not be used
    question: str = ""  # when it was asked in words


@command("chat.py")
def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(ChatConfig, argv, about=__doc__)
    start_logging()
    check_question(config)
    image = open_image(config.image, "--image") if config.image else None
    check_writable(config.vis_save_path, "--vis_save_path")
    model = load(config)
    if image is None:
        converse(model, config)
    else:
        answer = ask(model, image, config, prompt=config.prompt, classes=config.classes)
        tell(answer, image, Path(config.image).stem, config)
    return 0


def load(config: ChatConfig) -> LasagnaForConditionalGeneration:
    """The model on this machine's device."""
    if config.verify:
        verify_sums(config.version, "--version")
    model, _ = load_model(config.version, device=device_of(), **config.loading)
    return model


def check_question(config: ChatConfig) -> None:
    """UserError unless there are an image and one question about it, or neither: a conversation."""
    questions = [flag for flag in ("prompt", "classes") if getattr(config, flag).strip()]
    if config.image and len(questions) != 1:
        raise UserError(f"--image {config.image} needs one question: either --prompt or --classes")
    if questions and not config.image:
        raise UserError(f"--{questions[0]} needs --image, the image that it is about")


def open_image(text: str, flag: str = "") -> np.ndarray:
    """The image that `text` names, (height, width, 3) uint8; `flag` is named in errors."""
    path, named = Path(resolve(text)), f"{flag} {text}".strip()
    if path.is_dir():
        raise UserError(f"{named} is a folder, which holds {names_in(path)}; pass an image file")
    if not path.is_file():
        raise FileNotFoundError(f"{named} does not exist; pass an image file")
    return read_image(path)


def ask(
    model: LasagnaForConditionalGeneration,
    image: np.ndarray | EncodedImage,
    config: ChatConfig,
    *,
    prompt: str = "",
    classes: str = "",
) -> Answer:
    """One question about one image: a prompt in words, or class names separated by commas."""
    if prompt:
        return ask_in_words(model, image, prompt, config)
    format = model.processor.format
    found = model.segment(
        image,
        classes=split_names(classes),
        presence_threshold=config.presence_threshold,
        classes_per_query=config.classes_per_query,
    )
    choices = list(zip(found.names, found.present, strict=True))
    # Without a token for absent classes a format can only name those that are there.
    sayable = [choice for choice in choices if choice[1] or format.neg is not None]
    remark = unattributed_remark(found.unattributed, format)
    return Answer(
        # With a mask that may be of any class, "none of them is there" would be a guess.
        text="".join(format.answer(sayable)) if sayable or not remark else "",
        names=found.present_names,
        masks=found.masks,
        absent=() if remark else tuple(name for name, present in choices if not present),
        remark=remark,
    )


def unattributed_remark(words: Sequence[str], format: SequenceFormat) -> str:
    """What to say about masks that the answer gives to none of the classes asked; words: what it calls them."""
    if not words:
        return ""
    called = ", ".join(repr(text) for text in dict.fromkeys(words))
    masks = "1 mask" if len(words) == 1 else f"{len(words)} masks"
    verb = "is" if len(words) == 1 else "are"
    remark = f"{masks} of the answer could not be attributed to a class ({called}) and {verb} left out"
    # A model without a token for absent classes answers about one class without naming it.
    return f"{remark}; ask for one class at a time: --classes_per_query 1" if format.neg is None else remark


def ask_in_words(
    model: LasagnaForConditionalGeneration, image: np.ndarray | EncodedImage, prompt: str, config: ChatConfig
) -> Answer:
    """A generated answer. Its masks have the names that the user used, where the answer repeats them."""
    answer = model.chat(image, prompt, max_new_tokens=config.max_new_tokens)
    said = [(name_in(prompt, name), present) for name, present in answer.mentions]
    names = tuple(name for name, present in said if present)
    absent = tuple(name for name, present in said if name and not present)
    return Answer(question=prompt, text=answer.text, names=names, masks=answer.masks, absent=absent)


def split_names(text: str) -> list[str]:
    """Each name of "person, Tree ,tree" once, as it is spoken, in the order given."""
    names = list(dict.fromkeys(spoken(name) for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{text!r} has no class name; write them like this: person, tree, dog")
    return names


def name_in(prompt: str, name: str) -> str:
    """The name when the user spoke of it; "" for words of the answer such as "Sure, it is"."""
    return name if name and name.lower() in prompt.lower() else ""


def tell(answer: Answer, image: np.ndarray, stem: str, config: ChatConfig) -> None:
    """Print the text; write an image of each mask and the overlay of all."""
    for text in (answer.text, answer.remark):
        if text:
            print(wrapped(printable(text)))
    folder = writable_folder(config.vis_save_path, "--vis_save_path")
    stem = shortened(stem, MAX_STEM_BYTES)
    for number, (name, logits) in enumerate(zip(answer.names, answer.masks, strict=True), start=1):
        path = folder / f"{stem}_mask_{number}{file_suffix(name)}.png"
        write_png(path, Image.fromarray((logits > 0).cpu().numpy().astype(np.uint8) * 255))
        print(printable(f"  mask {number}{f', {name}' if name else ''}: {path}"))
    path = folder / f"{stem}_overlay.png"
    write_png(path, draw(answer, image))
    print(printable(f"  overlay: {path}"))


def file_suffix(name: str) -> str:
    """A class name as the end of a file name."""
    words = shortened(re.sub(r"\W+", "_", name).strip("_"), MAX_CLASS_BYTES)
    return f"_{words}" if words else ""


def draw(answer: Answer, image: np.ndarray) -> Image.Image:
    """The image with all masks and a legend; where masks overlap the highest logit is shown."""
    colours = [colour_of(name, number) for number, name in enumerate(answer.names)]
    legend = [LegendEntry(name=answer.question)] if answer.question else []
    legend += [
        LegendEntry(name=name or f"mask {number + 1}", colour=colour)
        for number, (name, colour) in enumerate(zip(answer.names, colours, strict=True))
    ]
    if not answer.names:
        what = "no mask could be attributed to a class" if answer.remark else "nothing was segmented"
        legend.append(LegendEntry(name=what, pale=True))
    if answer.absent:
        legend.append(LegendEntry(name="not in the image: " + ", ".join(answer.absent), pale=True))
    labels = label_map(answer.masks, range(len(answer.masks)))
    return annotate(image, labels, np.array(colours, dtype=np.uint8).reshape(-1, 3), legend)


def wrapped(text: str) -> str:
    """The text, wrapped between words on a terminal; on one line otherwise."""
    if not sys.stdout.isatty():
        return text
    return textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False)


def colour_of(name: str, number: int) -> Colour:
    """That of the class; of a mask without a name, by its number."""
    return class_colour(name) if name else MASK_COLOURS[number % len(MASK_COLOURS)]


def converse(model: LasagnaForConditionalGeneration, config: ChatConfig) -> None:
    """Questions from the keyboard, each answered on its own, until :quit or the end of input."""
    print(HELP)
    image: np.ndarray | None = None
    stem, number = "", 0
    while True:
        try:
            line = input(f"{shortened(stem, MAX_PROMPT_BYTES) or 'image'}> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            command, text = understand(line, has_image=image is not None)
            if command == "quit":
                return
            if command == "help":
                print(HELP)
            elif command == "image":
                image, stem, number = open_image(text), Path(resolve(text)).stem, 0
                encoded = model.encode(image)  # once for all questions about it
            elif text:
                assert image is not None  # `understand` refuses questions before there is one
                number += 1
                tell(ask(model, encoded, config, **{command: text}), image, f"{stem}_{number}", config)
        except (UserError, OSError) as problem:
            print(one_line(problem))  # and ask again


def understand(line: str, *, has_image: bool) -> tuple[str, str]:
    """What a line of a conversation asks for: (image, PATH), (classes, NAMES), (prompt, QUESTION), help or quit.

    Raises:
        UserError: an unknown command, or a question before there is an image.
    """
    if not line.startswith(":"):
        if not line or (has_image and not is_path(line)):
            return "prompt", line
        path = resolve(line)
        if not (is_path(line) or os.path.exists(path) or Path(path).suffix.lower() in IMAGE_SUFFIXES):
            raise UserError(f"{line!r} is no file; give the path of an image first, then ask about it")
        return "image", line
    name, *rest = line.split(maxsplit=1)
    command, text = name[1:].lower(), "".join(rest)
    if command not in COMMANDS:
        raise UserError(f"unknown command {name}; known: {', '.join(f':{known}' for known in COMMANDS)}")
    if command in ("image", "classes") and not text:
        raise UserError(f"{name} needs {COMMANDS[command]}; :help shows how to write it")
    if command == "classes" and not has_image:
        raise UserError(f"{name} asks about an image, and there is none yet; give its path first")
    return command, text


def is_path(line: str) -> bool:
    """Whether a line names an image rather than asks a question, as when a file is dropped into the terminal."""
    path = resolve(line)
    begins = line.strip("'\"").startswith(("/", "~/", "./", "../", "file:/"))
    return begins or (
        os.path.exists(path) and (os.sep in path or Path(path).suffix.lower() in IMAGE_SUFFIXES)
    )


if __name__ == "__main__":
    sys.exit(main())
