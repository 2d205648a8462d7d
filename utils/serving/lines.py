"""What is typed: the lines of a conversation, and the images that --image names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from model.errors import UserError
from utils.common.paths import resolve
from utils.config.chat import ChatConfig
from utils.data.files import names_in
from utils.data.image_formats import IMAGE_SUFFIXES
from utils.data.images import read_image
from utils.evaluation.predict import find_images
from utils.serving.answers import split_names

COMMANDS = {  # and what has to follow
    "image": "a path", "classes": "class names", "threshold": "", "save": "", "reset": "", "help": "", "quit": "",
}  # fmt: skip
ABOUT_AN_IMAGE = ("classes", "threshold", "save", "reset")
HELP = """\
  PATH               open an image; or drop the file here, or :image PATH
  :classes a, b, c   segment these classes, and say which are absent
  anything else      a question, which may refer to the answers before it
  :threshold 0.4     the probability from which a class is present, applied to
                     the last answer as well; none: the more probable choice
  :save [FILE]       write the conversation as JSON
  :reset             forget the conversation, keep the image
  :help, :quit       show this help, leave
  Ctrl-C             stop an answer"""


def check_question(config: ChatConfig) -> None:
    """UserError unless there are an image and one question about it, or neither: a conversation."""
    questions = [flag for flag in ("prompt", "classes") if getattr(config, flag).strip()]
    if config.image and len(questions) != 1:
        raise UserError(f"--image {config.image} needs one question: either --prompt or --classes")
    if questions and not config.image:
        raise UserError(f"--{questions[0]} needs --image, the image that it is about")
    if questions == ["classes"]:
        split_names(config.classes)
        if not config.sampling.is_greedy:
            raise UserError("--temperature is for answers in words; leave it out with --classes")
    if config.image and config.polygons and not config.json:
        raise UserError("--polygons adds outlines to the JSON; pass --json too")


def images_asked(text: str) -> list[Path]:
    """The image files that --image names: one, those of a folder, or those that match a pattern; none for "".

    A single one is opened, so that a file that is no image is found before a model is loaded.
    """
    if not text:
        return []
    if not os.path.exists(resolve(text)) and not set(text) & set("*?["):
        raise FileNotFoundError(f"--image {text} does not exist; pass an image file")
    found = find_images(resolve(text), "--image")
    if len(found) == 1:
        open_image(str(found[0]), "--image")
    return found


def open_image(text: str, flag: str = "") -> np.ndarray:
    """The image that `text` names, (height, width, 3) uint8; `flag` is named in errors."""
    path, named = Path(resolve(text)), f"{flag} {text}".strip()
    if path.is_dir():
        raise UserError(f"{named} is a folder, which holds {names_in(path)}; pass an image file")
    if not path.is_file():
        raise FileNotFoundError(f"{named} does not exist; pass an image file")
    return read_image(path)


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
    if COMMANDS[command] and not text:
        raise UserError(f"{name} needs {COMMANDS[command]}; :help shows how to write it")
    if command in ABOUT_AN_IMAGE and not has_image:
        raise UserError(f"{name} asks about an image, and there is none yet; give its path first")
    return command, text


def is_path(line: str) -> bool:
    """Whether a line names an image rather than asks a question, as when a file is dropped into the terminal."""
    path = resolve(line)
    begins = line.strip("'\"").startswith(("/", "~/", "./", "../", "file:/"))
    return begins or (
        os.path.exists(path) and (os.sep in path or Path(path).suffix.lower() in IMAGE_SUFFIXES)
    )


def threshold_of(text: str) -> float | None:
    """A probability, or None for "none". UserError for anything else."""
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"{text!r} is no threshold; write a probability from 0 to 1, or none")
    return value
