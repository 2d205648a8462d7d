"""chat.py in the terminal: one question about some images, or a conversation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from utils.common.commands import one_line
from utils.common.files import write_whole
from utils.common.paths import resolve, shortened
from utils.common.terminal import printable
from utils.config.chat import ChatConfig
from utils.evaluation.predict import output_names
from utils.serving.answers import Answer, Asking, split_names
from utils.serving.files import write_files
from utils.serving.inline_images import protocol_of, show
from utils.serving.lines import HELP, open_image, threshold_of, understand
from utils.serving.schema import (
    CONVERSATION_VERSION,
    AnswerJson,
    ConversationJson,
    answer_json,
    one_json_line,
)
from utils.serving.session import Session
from utils.serving.wrapping import Writer, wrapped, writer

MAX_PROMPT_BYTES = 40  # of an image's name before "> "
CONVERSATION_FILE = "conversation.json"


@dataclass(kw_only=True)
class Teller:
    """Prints answers and writes their files, as the settings say."""

    config: ChatConfig
    protocol: str = "none"  # for images in the terminal

    @classmethod
    def of(cls, config: ChatConfig) -> Teller:
        """Asks the terminal what it can show."""
        return cls(config=config, protocol="none" if config.json else protocol_of(config.inline_images))

    @property
    def notices(self) -> TextIO:
        """Where everything goes that is no answer: with --json standard output has answers only."""
        return sys.stderr if self.config.json else sys.stdout

    def say(self, text: str) -> None:
        """Print something that is no answer."""
        print(text if self.config.json else wrapped(text), file=self.notices, flush=True)

    def stream(self) -> Writer | None:
        """Where the text of an answer goes while it is generated; None with --json."""
        return None if self.config.json else writer()

    def tell(
        self,
        answer: Answer,
        image: np.ndarray,
        stem: str,
        *,
        file: str,
        threshold: float | None,
        streamed: bool,
    ) -> AnswerJson:
        """Print an answer and write its files; `streamed`: its text is printed already. Returns it as JSON."""
        config = self.config
        if not config.json:
            for text in ("" if streamed else answer.text, answer.remark):
                if text:
                    print(wrapped(text))
            if not answer.is_complete:
                print(wrapped(f"(cut after {config.max_new_tokens} tokens; --max_new_tokens allows more)"))
        found = answer.found(instances=config.instances, min_area=config.min_area)
        written, overlay = write_files(
            answer, found, image, stem, config.vis_save_path, cutouts=config.cutouts, maps=config.save_maps
        )
        content = answer_json(
            answer,
            found,
            size=image.shape[:2],
            file=file,
            threshold=threshold,
            polygons=config.polygons,
            instances=config.instances,
        )
        content["overlay"] = str(written.overlay)
        for entry, path in zip(content["masks"], written.masks, strict=True):
            entry["file"] = str(path)
        for entry, cut in zip(content["masks"], written.cutouts):  # noqa: B905, none unless asked for
            if cut is not None:
                entry["cutout"] = str(cut)
        for entry, path in zip(content["masks"], written.maps):  # noqa: B905, the same
            entry["map"] = str(path)
        if config.json:
            print(one_json_line(content), flush=True)
            return content
        if known := [one for one in answer.classes if one.probability is not None]:
            shown = ", ".join(f"{one.label} {one.probability:.2f}" for one in known)
            print(wrapped(f"  probabilities: {shown}", indent="    "))
        for number, entry in enumerate(content["masks"], start=1):
            name = f", {entry['label']}" if entry["label"] else ""
            print(printable(f"  mask {number}{name}: {entry['file']}"))
            if "cutout" in entry:
                print(printable(f"  cut-out {number}{name}: {entry['cutout']}"))
            if "map" in entry:
                print(printable(f"  map {number}{name}: {entry['map']}"))
        print(printable(f"  overlay: {written.overlay}"), flush=True)
        show(overlay, self.protocol, sys.stdout)
        return content


def ask_about_images(
    model: LasagnaForConditionalGeneration, images: Sequence[Path], config: ChatConfig
) -> int:
    """One question about each image; returns how many could not be read. The only image raises instead."""
    teller, session = Teller.of(config), Session(model=model, asking=Asking.of(config))
    num_unreadable = 0
    for path, stem in zip(images, output_names(images), strict=True):
        try:
            image = open_image(str(path), "--image")
        except (UserError, OSError) as problem:
            if len(images) == 1:
                raise
            print(f"left out: {one_line(problem)}", file=sys.stderr, flush=True)
            num_unreadable += 1
            continue
        if len(images) > 1 and not config.json:
            print(printable(f"{path}:"))
        session.open(image)
        answer, streamed = ask(session, teller, prompt=config.prompt, classes=config.classes)
        teller.tell(
            answer, image, stem, file=str(path), threshold=config.presence_threshold, streamed=streamed
        )
    return num_unreadable


def ask(session: Session, teller: Teller, *, prompt: str = "", classes: str = "") -> tuple[Answer, bool]:
    """The answer to a question in words or to class names, and whether its text was printed while it came."""
    if classes:
        return session.segment(split_names(classes)), False
    stream = teller.stream()
    if stream is None:
        return session.ask(prompt), False
    try:
        return session.ask(prompt, stream.add), True
    finally:
        stream.end()


@dataclass(kw_only=True)
class Dialogue:
    """A conversation in the terminal: the session, and where its answers are."""

    session: Session
    teller: Teller
    model_name: str
    file: str = ""  # the image, as it was named
    stem: str = ""
    number: int = 0  # of answers about this image
    told: list[AnswerJson] = field(default_factory=list)  # since the last :reset, about all images

    def do(self, command: str, text: str) -> None:
        """Carry out what a line asks for."""
        if command == "help":
            self.teller.say(HELP)
        elif command == "image":
            self.open(text)
        elif command == "reset":
            self.session.forget()
            self.told.clear()
            self.teller.say("the conversation begins anew, about the same image")
        elif command == "threshold":
            self.set_threshold(text)
        elif command == "save":
            self.save(text)
        elif text:
            answer, streamed = ask(self.session, self.teller, **{command: text})
            self.number += 1
            self.told.append(self.tell(answer, streamed=streamed))

    def open(self, text: str) -> None:
        """Turn to another image."""
        image = open_image(text)
        had_answers = bool(self.session.answers)
        self.session.open(image)
        self.file, self.stem, self.number = resolve(text), Path(resolve(text)).stem, 0
        if had_answers:
            self.teller.say("another image: the conversation begins anew")

    def set_threshold(self, text: str) -> None:
        """:threshold, with or without a value."""
        if text:
            again = self.session.set_threshold(threshold_of(text))
            if again is not None:
                forget_files(self.told[-1])  # fewer masks may follow
                self.told[-1] = self.tell(again, streamed=False)
                return
        threshold = self.session.asking.presence_threshold
        shown = "none: the more probable choice" if threshold is None else f"{threshold:g}"
        self.teller.say(f"threshold: {shown}")

    def save(self, text: str) -> None:
        """Write the conversation as JSON."""
        if not self.told:
            raise UserError("nothing was asked yet, so there is nothing to save")
        named = bool(text)
        path = Path(resolve(text)) if named else Path(self.teller.config.vis_save_path) / CONVERSATION_FILE
        number = 1
        while path.exists():
            if named:
                raise UserError(f":save {text}: there is a file of this name; choose another one")
            number += 1
            path = path.with_name(f"{Path(CONVERSATION_FILE).stem}_{number}.json")
        content = ConversationJson(schema=CONVERSATION_VERSION, model=self.model_name, answers=self.told)
        write_whole(path, one_json_line(content) + "\n")
        self.teller.say(printable(f"  conversation: {path}"))

    def tell(self, answer: Answer, *, streamed: bool) -> AnswerJson:
        """Print an answer about the image and write its files."""
        assert self.session.image is not None
        return self.teller.tell(
            answer,
            self.session.image,
            f"{self.stem}_{self.number}",
            file=self.file,
            threshold=self.session.asking.presence_threshold,
            streamed=streamed,
        )


def forget_files(content: AnswerJson) -> None:
    """Remove the masks, cut-outs and maps that were written for an answer."""
    for mask in content["masks"]:
        for path in (mask.get("file"), mask.get("cutout"), mask.get("map")):
            if path is not None:
                Path(path).unlink(missing_ok=True)


def converse(model: LasagnaForConditionalGeneration, config: ChatConfig) -> None:
    """Questions from the keyboard or a pipe until :quit or the end of input; each sees the answers before it.

    Ctrl-C stops an answer, which is then no part of the conversation. At an empty line, the second one leaves.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():  # elsewhere it would write to standard output
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, arrow keys and earlier lines in input()
    teller = Teller.of(config)
    session = Session(model=model, asking=Asking.of(config))
    dialogue = Dialogue(session=session, teller=teller, model_name=config.version)
    teller.say(HELP)
    num_interrupts = 0
    while True:
        try:
            line = read_line(f"{shortened(dialogue.stem, MAX_PROMPT_BYTES) or 'image'}> ", teller)
        except EOFError:
            teller.say("")
            return
        except KeyboardInterrupt:
            num_interrupts += 1
            teller.say("" if num_interrupts > 1 else "\n(:quit or Ctrl-D leaves, and so does another Ctrl-C)")
            if num_interrupts > 1:
                return
            continue
        num_interrupts = 0
        try:
            command, text = understand(line.strip(), has_image=session.image is not None)
            if command == "quit":
                return
            dialogue.do(command, text)
        except (UserError, OSError) as problem:
            teller.say(one_line(problem))  # and ask again
        except KeyboardInterrupt:
            teller.say("(stopped)")


def read_line(prompt: str, teller: Teller) -> str:
    """A line from the keyboard or a pipe; a program that writes lines into a pipe sees no prompt."""
    if not sys.stdin.isatty():
        return input("")
    if teller.notices is sys.stdout:
        return input(printable(prompt))
    print(printable(prompt), end="", file=teller.notices, flush=True)
    return input("")
