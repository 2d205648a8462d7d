"""One question about one image, and what the model said: text, masks, classes present and absent."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from model.choices import DEFAULT_NEW_TOKENS
from model.decoders.decoded import Instances
from model.errors import UserError
from model.exports import Exportable, FoundMask
from model.generation.sampling import GREEDY, Sampling
from model.generation.streaming import TextStream
from model.lasagna import LasagnaForConditionalGeneration
from model.outputs import ChatAnswer, EncodedImage, Segmentation, SimilarityMaps, objects_of
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation, Turn
from model.text.format import SequenceFormat, spoken
from utils.config.chat import ChatConfig

OnText = Callable[[str], object]  # called with each new part of an answer's text


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are asked; the defaults are those of training."""

    presence_threshold: float | None = (
        None  # minimum probability of a present class; None: the more probable choice
    )
    classes_per_query: int | None = None  # None: as in training
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    sampling: Sampling = GREEDY  # of answers in words

    @classmethod
    def of(cls, config: ChatConfig) -> Asking:
        """As the flags say."""
        return cls(
            presence_threshold=config.presence_threshold,
            classes_per_query=config.classes_per_query,
            max_new_tokens=config.max_new_tokens,
            sampling=config.sampling,
        )

    def limit(self, model: LasagnaForConditionalGeneration) -> int:
        """Number of classes that one query names."""
        return self.classes_per_query or model.config.num_all_classes


@dataclass(frozen=True, kw_only=True)
class AskedClass:
    """What an answer decides about one class."""

    label: str
    present: bool | None  # None: a mask of the answer may be of this class or of another one
    probability: float | None  # None where the model gives none


@dataclass(frozen=True, kw_only=True)
class Answer(Exportable):
    """What the model said about an image."""

    text: str
    names: tuple[str, ...]  # of each mask; "" when the text does not name it
    masks: Tensor  # (num_masks, height, width) float32 logits
    classes: tuple[
        AskedClass, ...
    ] = ()  # asked for; of a question in words, those that the answer decides about
    absent: tuple[str, ...] = ()  # classes asked for and answered as absent
    remark: str = ""  # what of the answer could not be used
    question: str = ""  # when it was asked in words
    turns: tuple[Turn, ...] = ()  # the question and its answer, for a conversation that goes on
    segmentation: Segmentation | None = None  # of a class query, to decide again with `model.rethreshold`
    is_complete: bool = True  # False: it was cut after `max_new_tokens`
    maps: SimilarityMaps | None = None  # one for each mask, of a model with a spatial prompt
    instances: tuple[Instances, ...] | None = (
        None  # of an answer in words by a concept head, one for each mask
    )

    def labels_and_probabilities(self) -> list[tuple[str, float | None]]:
        """For each mask its name and the probability that the class is present."""
        known = {one.label: one.probability for one in self.classes}
        return [(name, known.get(name)) for name in self.names]

    def own_instances(self) -> Sequence[FoundMask] | None:
        """Those of the segmentation or of the answer in words, where the model tells objects apart."""
        if self.segmentation is not None:
            return self.segmentation.own_instances()
        return objects_of(self.labels_and_probabilities(), self.instances)


def ask_classes(
    model: LasagnaForConditionalGeneration,
    image: np.ndarray | EncodedImage,
    names: Sequence[str],
    asking: Asking,
) -> Answer:
    """A complex query: which of these classes are in the image, and where."""
    found = model.segment(
        image,
        classes=names,
        presence_threshold=asking.presence_threshold,
        classes_per_query=asking.classes_per_query,
    )
    return answer_of(found, model.processor.format, asking.limit(model))


def answer_of(found: Segmentation, format: SequenceFormat, limit: int) -> Answer:
    """What a segmentation says, in the words of the format; `limit`: classes that one query names."""
    choices = list(zip(found.names, found.present, strict=True))
    # Without a token for absent classes a format can only name those that are there.
    sayable = [choice for choice in choices if choice[1] or format.neg is not None]
    remark = unattributed_remark(found.unattributed, format)
    turns: list[Turn] = []
    for start in range(0, len(choices), limit):
        part = choices[start : start + limit]
        said = [choice for choice in part if choice[1] or format.neg is not None]
        turns.append(Turn("user", format.query([name for name, _ in part])))
        turns.append(Turn("assistant", format.answer(said)))
    return Answer(
        # With a mask that may be of any class, "none of them is there" would be a guess.
        text="".join(format.answer(sayable)) if sayable or not remark else "",
        names=found.present_names,
        masks=found.masks,
        classes=tuple(
            AskedClass(
                label=name,
                present=None if remark and not present else present,
                probability=probability if format.answers_every_class else None,
            )
            for (name, present), probability in zip(choices, found.probabilities, strict=True)
        ),
        absent=() if remark else tuple(name for name, present in choices if not present),
        remark=remark,
        turns=() if remark else tuple(turns),  # what was said is not known then
        segmentation=found,
        maps=found.maps,
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
    model: LasagnaForConditionalGeneration,
    image: np.ndarray | EncodedImage,
    prompt: str,
    asking: Asking,
    *,
    history: Sequence[Turn] = (),
    on_text: OnText | None = None,
) -> Answer:
    """A generated answer. Its masks have the names that the user used, where the answer repeats them.

    Args:
        history: earlier turns of the conversation, which the question may refer to.
        on_text: gets the text while it is generated.
    """
    conversation = Conversation((*history, Turn("user", (prompt,))))
    stream = TextStream(model.processor) if on_text else None

    def on_token(_: int, token: int) -> None:
        if stream is not None and on_text is not None and (new := stream.add(token)):
            on_text(new)

    answer = model.chat(
        image,
        conversation,
        max_new_tokens=asking.max_new_tokens,
        sampling=asking.sampling,
        on_token=on_token if stream else None,
    )
    if stream is not None and on_text is not None and (rest := stream.rest(answer.text)):
        on_text(rest)
    said = model.processor.said(answer.token_ids)
    return answer_in_words(answer, conversation, said, is_ended(answer, model.processor))


def is_ended(answer: ChatAnswer, processor: LasagnaProcessor) -> bool:
    """Whether an answer ended by itself rather than after `max_new_tokens`."""
    return not answer.token_ids or answer.token_ids[-1] == processor.token_ids.eos


def answer_in_words(
    answer: ChatAnswer, conversation: Conversation, said: Turn, is_complete: bool = True
) -> Answer:
    """What a generated answer to a conversation says; `said`: the same as its next turn."""
    asked = "\n".join(str(turn) for turn in conversation.turns if turn.role == "user")
    mentions = [(name_in(asked, name), present) for name, present in answer.mentions]
    classes = {
        name: AskedClass(label=name, present=present, probability=None) for name, present in mentions if name
    }
    return Answer(
        question=str(conversation.turns[-1]),
        text=answer.text,
        names=tuple(name for name, present in mentions if present),
        masks=answer.masks,
        classes=tuple(classes.values()),
        absent=tuple(name for name, present in mentions if name and not present),
        turns=(conversation.turns[-1], said),
        is_complete=is_complete,
        maps=answer.maps,
        instances=answer.instances,
    )


def split_names(text: str) -> list[str]:
    """Each name of 'person, Tree ,tree' once, as it is spoken, in the order given; see `split_list`.

    Raises:
        UserError: there is no name, or a quote is not closed.
    """
    return unique_names(split_list(text), text)


def split_list(text: str) -> list[str]:
    """The parts between the commas of a text; they may be empty.

    One with a comma stands in double quotes, as in a CSV file: 'dog, "traffic light, red"'. Raises a UserError for a
    quote that is not closed.
    """
    plain = " ".join(text.split())
    try:
        if '"' in plain:
            closed = re.sub(r'" +(,|$)', r'"\1', plain)  # a space behind a quote is no part of a name
            [row] = csv.reader([closed], skipinitialspace=True, strict=True)
        else:  # as the reader does, but for its limit of the length of a name
            row = plain.split(",")
    except csv.Error:
        raise UserError(
            f"{text!r}: a double quote before a name is closed after it; write names with commas like this: "
            'dog, "traffic light, red"'
        ) from None
    return [part.strip() for part in row]


def unique_names(names: Sequence[str], text: str = "") -> list[str]:
    """Each name once, as it is spoken; empty ones are left out. UserError without any; `text`: as they were typed."""
    found = list(dict.fromkeys(spoken(name) for name in names if name.strip()))
    if not found:
        raise UserError(f"{text!r} has no class name; write them like this: person, tree, dog")
    return found


def name_in(prompt: str, name: str) -> str:
    """The name when the user spoke of it; "" for words of the answer such as "Sure, it is"."""
    return name if name and name.lower() in prompt.lower() else ""
