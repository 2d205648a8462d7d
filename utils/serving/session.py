"""A conversation about one image: it is encoded once, and each question may refer to the answers before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from model.errors import UserError
from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import EncodedImage, Segmentation
from model.text.conversation import Turn
from utils.serving.answers import Answer, Asking, OnText, answer_of, ask_classes, ask_in_words


@dataclass(kw_only=True)
class Session:
    """A model, an image and what was said about it.

    A question that fails or is interrupted leaves the conversation as it was.
    """

    model: LasagnaForConditionalGeneration
    asking: Asking
    image: np.ndarray | None = None  # (height, width, 3) uint8
    encoded: EncodedImage | None = None
    answers: list[Answer] = field(default_factory=list)  # about this image, since the last `forget`
    num_asked: int = 0

    def open(self, image: np.ndarray) -> None:
        """Turns to another (height, width, 3) uint8 image; what was said about the one before is forgotten."""
        encoded = self.model.encode(image)
        self.image, self.encoded = image, encoded
        self.forget()

    def forget(self) -> None:
        """Begins the conversation anew, about the same image."""
        self.answers.clear()

    @property
    def history(self) -> tuple[Turn, ...]:
        """All turns so far."""
        return tuple(turn for answer in self.answers for turn in answer.turns)

    def ask(self, prompt: str, on_text: OnText | None = None) -> Answer:
        """A question in words; `on_text` gets the text of the answer while it is generated."""
        sampling = self.asking.sampling
        if not sampling.is_greedy:  # the same seed would draw alike for each question
            sampling = replace(sampling, seed=sampling.seed + self.num_asked)
        return self._keep(self._in_words(prompt, replace(self.asking, sampling=sampling), on_text))

    def segment(self, names: Sequence[str]) -> Answer:
        """Which of the classes are in the image: asked on its own, as in training, and a part of the history then."""
        return self._keep(self._about_classes(names))

    def set_threshold(self, threshold: float | None) -> Answer | None:
        """The threshold of presence from now on. If the last answer was about classes it is decided again.

        Returns:
            the last answer with the new decisions, which replaces it; None if there is nothing to decide.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"a threshold is a probability, 0 to 1, got {threshold}")
        last = self.answers[-1] if self.answers else None
        again = None
        if last is not None and last.segmentation is not None:
            again = answer_of(
                self._decide_again(last.segmentation, threshold),
                self.model.processor.format,
                self.asking.limit(self.model),
            )
            self.answers[-1] = again
        self.asking = replace(self.asking, presence_threshold=threshold)
        return again

    def _in_words(self, prompt: str, asking: Asking, on_text: OnText | None) -> Answer:
        return ask_in_words(
            self.model, self._encoded(), prompt, asking, history=self.history, on_text=on_text
        )

    def _about_classes(self, names: Sequence[str]) -> Answer:
        return ask_classes(self.model, self._encoded(), names, self.asking)

    def _decide_again(self, found: Segmentation, threshold: float | None) -> Segmentation:
        return self.model.rethreshold(found, self._encoded(), threshold)

    def _encoded(self) -> EncodedImage:
        if self.encoded is None:
            raise UserError("there is no image yet; give its path first")
        return self.encoded

    def _keep(self, answer: Answer) -> Answer:
        self.answers.append(answer)
        self.num_asked += 1
        return answer
