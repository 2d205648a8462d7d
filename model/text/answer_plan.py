"""The answer to a complex query before it is decoded: the text is fixed except for SEG or NEG after each name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from model.errors import UserError
from model.text.conversation import Conversation
from model.text.encoded import encode_conversation, encode_with_place
from model.text.format import SequenceFormat
from model.text.special_tokens import Text
from model.text.templates import OwnChatTemplate


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """The tokens of the answer to one complex query; only the choices between SEG and NEG are undecided."""

    names: tuple[str, ...]  # the classes of the query, in order
    token_ids: tuple[int, ...]  # the answer up to its last choice, with the SEG id at every choice
    positions: tuple[int, ...]  # index of each name's choice in token_ids, ascending

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.positions)


def plan_answer(
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    format: SequenceFormat,
    *,
    prompt: str,
    template: OwnChatTemplate | None = None,
) -> AnswerPlan:
    """The plan of the answer to `format.query(classes)`.

    The answer is tokenized as a whole, after its prompt, because concatenating the ids of single names does not give
    the ids of the whole text. Raises ValueError when the format leaves more undecided than SEG or NEG.
    """
    if not format.answers_every_class:
        raise UserError(
            "constrained decoding needs a model trained with sequence_augmentation and order_following and a "
            f"token for absent classes; this one has {format}. Decode it freely instead"
        )
    query = format.query(classes)
    answer = format.answer([(name, True) for name in classes])

    def encoded(*texts: Text) -> list[int]:
        conversation = Conversation.of(*texts)
        if template is not None:
            return encode_with_place(tokenizer, conversation, template).input_ids
        return encode_conversation(tokenizer, conversation, prompt=prompt, num_image_tokens=0).input_ids

    asked, whole = encoded(query), encoded(query, answer)
    length = len(asked)
    if whole[:length] != asked:
        cure = "take another base" if template is not None else "use 'llava_v1'"
        raise UserError(f"prompt {prompt!r} writes the query differently once it is answered; {cure}")
    ids = whole[length:]
    seg_id = tokenizer.convert_tokens_to_ids(format.seg)
    positions = tuple(position for position, index in enumerate(ids) if index == seg_id)
    return AnswerPlan(names=tuple(classes), token_ids=tuple(ids[: positions[-1] + 1]), positions=positions)
