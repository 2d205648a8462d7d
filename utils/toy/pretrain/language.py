"""The tiny LLaVA: captions and questions about scenes, in the original LLaVA v1 layout.

The vocabulary is a sentencepiece BPE with byte fallback, as LLaMA's. The tower is frozen; projector and language
model learn together. Two auxiliary losses stand for the alignment and the grounded data of the published models:
each projected patch is read with the word embeddings ("this patch says sky"), and the state at the end of a class
name or a referring expression tells through a linear head, thrown away afterwards, which patches it speaks of.
Without the second one, names find their places only after hours on two cores.
The model never sees a segmentation token or a list of classes.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from model.conversation import PROMPTS, Conversation, encode_conversation
from model.sequence import phrases
from model.tokens import IM_END, IM_START, IMAGE, load_tokenizer
from utils.data.class_lists import load_class_list
from utils.toy.language import absent_expressions, caption, expressions, questions, reasoning_questions
from utils.toy.pretrain.clip import PATCH, SIDE, normalise, pad_to_square
from utils.toy.pretrain.common import (
    HELD_OUT_SEED,
    NUM_LABELS,
    PRETRAIN_SEED,
    Square,
    batches,
    patch_histogram,
    train,
)
from utils.toy.scene import CLASSES, Scene, Thing, draw_scene

VOCAB_SIZE = 1600
GRID = SIDE // PATCH
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
CAPTION_REQUESTS = ("Describe the image.", "What is in this picture?", "Write a caption.", "What do you see?")
BOX_ANSWERS = (
    "{}", "It is at {}.", "Sure, it is at {}.", "The box is {}.", "Here it is: {}.", "It is {}.", "Sure, {}.",
    "The result is {}.", "That would be {}.", "The answer is {}.", "Sure, it is {}.",
)  # fmt: skip
BOX_REQUESTS = (
    "Where exactly is {}?", "Give the box of {}.", "What are the bounds of {}?", "Find {}.", "Point to {}.",
    "Please show {}.", "Locate {} in this image.", "Can you find {} in this image?", "Can you mark {}?",
    "I am looking for {}.", "Which part of the picture is {}?",
)  # fmt: skip
CELL_REQUESTS = ("What is at column {} row {}?", "Name the thing at column {} row {}.")
PRESENCE_REQUESTS = ("Do you see {}?", "Can you see {}?", "Does the picture show {}?")


def corpus() -> Iterator[str]:
    """Text for the vocabulary: what is said about scenes, the names of the class lists and the prompt templates."""
    for index in range(3000):
        scene, rng = draw_scene(PRETRAIN_SEED, index), np.random.default_rng((index, 5))
        for turn in conversation(scene, rng, pad_to_square(scene)).turns:
            yield str(turn)
    names = [name for key in ("ade20k", "cocostuff", "cityscapes") for name in load_class_list(key)]
    yield from names * 20
    for lines in phrases().values():
        yield from [line for line in lines for _ in range(50)]
    template = PROMPTS["llava_v1"]
    yield from [template.opening + template.cue] * 2000
    yield from ["Can you segment the person, tree, sky in this image?"] * 200
    yield from ["".join(str(number) for number in range(GRID))] * 200


def train_vocabulary(folder: Path) -> None:
    """Write tokenizer.model, tokenizer_config.json and added_tokens.json as the original LLaVA folders have them."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(), model_prefix=str(folder / "tokenizer"), vocab_size=VOCAB_SIZE,
        model_type="bpe", byte_fallback=True, split_digits=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
        character_coverage=1.0, num_threads=1, minloglevel=2, hard_vocab_limit=True,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    token = {
        "__type": "AddedToken",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    settings = {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": True,
        "bos_token": {**token, "content": "<s>"}, "eos_token": {**token, "content": "</s>"},
        "unk_token": {**token, "content": "<unk>"}, "model_max_length": 2048, "pad_token": None,
        "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    added = {IM_START: VOCAB_SIZE, IM_END: VOCAB_SIZE + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


Phrases = dict[
    str, np.ndarray
]  # an expression, and the share (patches,) of each patch that its target covers


def conversation(
    scene: Scene, rng: np.random.Generator, square: Square, phrases_of: Phrases | None = None
) -> Conversation:
    """Several turns about a scene: its caption first or none, then questions in random order.

    The expressions that the turns contain are added to `phrases_of`.
    """
    said: Phrases = {} if phrases_of is None else phrases_of
    turns: list[tuple[str, str]] = list(questions(scene, rng))
    order = rng.permutation(len(turns))[:8]
    turns = [turns[k] for k in order]
    turns += _box_turns(scene, rng, square, said)
    turns += _cell_turns(rng, square) + _presence_turns(scene, rng, square, said)
    turns += _reasoning_turns(scene, rng, square, said)
    turns = [turns[k] for k in rng.permutation(len(turns))][:12]
    if rng.random() < 0.4:
        request = CAPTION_REQUESTS[int(rng.integers(len(CAPTION_REQUESTS)))]
        turns = [(request, caption(scene, rng)), *turns[: len(turns) // 2]]
    return Conversation.of(*[text for turn in turns for text in turn])


def _box_turns(
    scene: Scene, rng: np.random.Generator, square: Square, said: Phrases
) -> list[tuple[str, str]]:
    """Boxes of things as left, top, right, bottom in cells of the patch grid, given an expression."""
    turns = []
    for number in rng.permutation(len(scene.things))[:5]:
        thing: Thing = scene.things[number]
        texts = expressions(scene, thing, rng)
        if texts:
            request = BOX_REQUESTS[int(rng.integers(len(BOX_REQUESTS)))]
            text = texts[int(rng.integers(len(texts)))]
            said[text] = _share_of_thing(square, int(number))
            box = (np.array(thing.box) - [0, 0, 1, 1]) * square.scale + np.array(square.offset * 2)
            cells = np.clip(box // PATCH, 0, GRID - 1).astype(int)
            answer = BOX_ANSWERS[int(rng.integers(len(BOX_ANSWERS)))]
            turns.append((request.format(text), answer.format("".join(str(cell) for cell in cells))))
    return turns


def _share_of_thing(square: Square, number: int) -> np.ndarray:
    return patch_histogram(square.thing == number + 1, PATCH, 2)[:, 1]


def _cell_turns(rng: np.random.Generator, square: Square) -> list[tuple[str, str]]:
    shares = patch_histogram(square.label, PATCH, NUM_LABELS)
    turns = []
    for _ in range(2):
        column, row = (int(value) for value in rng.integers(0, GRID, 2))
        share = shares[row * GRID + column]
        if share.max() > 0.7 and share.argmax() < len(CLASSES):
            request = CELL_REQUESTS[int(rng.integers(len(CELL_REQUESTS)))]
            turns.append((request.format(column, row), CLASSES[int(share.argmax())]))
    return turns


def _presence_turns(
    scene: Scene, rng: np.random.Generator, square: Square, said: Phrases
) -> list[tuple[str, str]]:
    """Is there such a thing? Half of the expressions are true of something, half of nothing."""
    turns = []
    for text in absent_expressions(scene, rng, 2):
        said[text] = np.zeros(GRID**2, np.float32)
        turns.append((text, "no"))
    for number in rng.permutation(len(scene.things))[:2]:
        texts = expressions(scene, scene.things[number], rng)
        if texts:
            turns.append((texts[int(rng.integers(len(texts)))], "yes"))
            said[turns[-1][0]] = _share_of_thing(square, int(number))
    requests = rng.integers(len(PRESENCE_REQUESTS), size=len(turns))
    return [
        (PRESENCE_REQUESTS[int(request)].format(text), answer)
        for request, (text, answer) in zip(requests, turns, strict=True)
    ]


def _reasoning_turns(
    scene: Scene, rng: np.random.Generator, square: Square, said: Phrases
) -> list[tuple[str, str]]:
    """Questions that name no class, answered by names."""
    asked = [puzzle for puzzle in reasoning_questions(scene, rng) if puzzle.is_sentence][:2]
    for puzzle in asked:
        indices = [CLASSES.index(name) for name in puzzle.names]
        said[puzzle.question] = patch_histogram(np.isin(square.label, indices), PATCH, 2)[:, 1]
    return [(puzzle.question, " and ".join(f"the {name}" for name in puzzle.names)) for puzzle in asked]


class LanguageStudent(nn.Module):
    """LLaMA and a linear projector on top of the frozen tower."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.tower = [tower.eval().requires_grad_(False)]  # in a list: not a part of what is saved
        self.llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE + 2, **SIZES))
        self.projector = nn.Linear(tower.config.hidden_size, SIZES["hidden_size"])
        self.name_ids = [tokenizer(name, add_special_tokens=False).input_ids[0] for name in CLASSES]
        self.aligned = nn.Parameter(torch.tensor(1.0))  # log of the scale of the auxiliary logits
        # The first tokens of short answers: yes, no, and the white space before digits.
        self.answers = {tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no", "3")}
        self.answers.add(tokenizer.eos_token_id)
        dim = SIZES["hidden_size"]
        # Where a phrase's target is: read in the middle of the model, where names should find their patches, and
        # at its end, where an answer is decided.
        self.places = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, GRID**2)) for _ in range(2)
        )

    def losses(self, scenes: list[Scene], seed: int = 0) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, int(scenes[0].image.sum(dtype=np.int64))))
        squares = [pad_to_square(scene) for scene in scenes]
        said: list[Phrases] = [{} for _ in scenes]
        encoded = [
            encode_conversation(
                self.tokenizer,
                conversation(scene, rng, square, phrases_of),
                prompt="llava_v1",
                num_image_tokens=GRID**2,
            )
            for scene, square, phrases_of in zip(scenes, squares, said, strict=True)
        ]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(e.input_ids) for e in encoded], batch_first=True)
        labels = nn.utils.rnn.pad_sequence(
            [torch.tensor(e.labels) for e in encoded], batch_first=True, padding_value=-100
        )
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                pixels = normalise(np.stack([square.image for square in squares]))
                seen = self.tower[0](pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            patches = self.projector(seen).float()  # (B, patches, hidden)
            image_id = self.tokenizer.convert_tokens_to_ids(IMAGE)
            is_image = ids == image_id
            embeds = self.llama.get_input_embeddings()(ids.masked_fill(is_image, 0))
            embeds = embeds.masked_scatter(is_image[..., None].expand_as(embeds), patches)
            # Padding is at the right, and attention is causal: no mask is needed.
            states = self.llama.model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
            hidden = states[-1]
            learned = labels[:, 1:] != -100
            logits = self.llama.lm_head(hidden[:, :-1][learned]).float()
        targets = labels[:, 1:][learned]
        text_loss = F.cross_entropy(logits, targets)
        aligned_loss = self._alignment(patches, squares)
        right = logits.argmax(-1) == targets
        place_losses = self._places(states[len(states) // 2], hidden, ids, squares, said)
        return {
            "loss": text_loss + 0.2 * aligned_loss + 5 * sum(place_losses),
            "text": text_loss,
            "aligned": aligned_loss,
            "place": place_losses[-1],
            "tokens right": right.float().mean(),
        } | self._answer_scores(targets, right)

    def _places(
        self, middle: Tensor, last: Tensor, ids: Tensor, squares: list[Square], said: list[Phrases]
    ) -> list[Tensor]:
        """Binary cross-entropy of the patches that the text speaks of, for two layers.

        In the middle: at the end of class names and expressions. At the end of the model also from there to the
        word that answers, so that "it is" knows of what it speaks.
        """
        losses = []
        for head, states, to_answer in ((self.places[0], middle, False), (self.places[1], last, True)):
            rows, columns, targets = [], [], []
            for row, (square, phrases_of) in enumerate(zip(squares, said, strict=True)):
                places = self._places_of(ids[row].tolist(), square, phrases_of, to_answer=to_answer)
                rows += [row] * len(places)
                columns += places.keys()
                targets += places.values()
            target = torch.from_numpy(np.stack(targets))  # (num_positions, patches)
            losses.append(F.binary_cross_entropy_with_logits(head(states[rows, columns].float()), target))
        return losses

    def _places_of(
        self, tokens: list[int], square: Square, phrases_of: Phrases, *, to_answer: bool
    ) -> dict[int, np.ndarray]:
        """For positions of one text the share of each patch that is spoken of there."""
        shares = patch_histogram(square.label, PATCH, NUM_LABELS)
        places = {
            position: shares[:, self.name_ids.index(token)]
            for position, token in enumerate(tokens)
            if token in self.name_ids
        }
        for text, share in phrases_of.items():  # an expression is about its own target, not all of its kind
            words = self.tokenizer(text, add_special_tokens=False).input_ids
            for start in range(len(tokens) - len(words) + 1):
                if tokens[start : start + len(words)] == words:
                    position = start + len(words) - 1
                    places[position] = share
                    while (
                        to_answer and position + 1 < len(tokens) and tokens[position + 1] not in self.answers
                    ):
                        position += 1
                        places[position] = share
        return places

    def _answer_scores(self, targets: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Teacher-forced accuracy of yes / no and of single digits."""
        yes, no = (self.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
        digits = {i for t, i in self.tokenizer.get_vocab().items() if t.lstrip("▁").isdigit()}
        polar = (targets == yes) | (targets == no)
        box = torch.tensor([int(t) in digits for t in targets])
        return {"yes/no": right[polar].float().mean(), "digits": right[box].float().mean()}

    def _alignment(self, patches: Tensor, squares: list[Square]) -> Tensor:
        shares = np.stack([patch_histogram(square.label, PATCH, NUM_LABELS) for square in squares])
        target = torch.from_numpy(shares[..., : len(CLASSES)].argmax(-1))
        sure = torch.from_numpy(shares[..., : len(CLASSES)].max(-1) > 0.2)
        words = F.normalize(self.llama.get_input_embeddings().weight[self.name_ids].float(), dim=-1)
        logits = F.normalize(patches, dim=-1) @ words.T * self.aligned.exp() * 5
        return F.cross_entropy(logits[sure], target[sure])


def write_llava_v1(student: LanguageStudent, folder: Path) -> None:
    """The original layout: LLaMA's names, `model.mm_projector.*`, one pytorch_model.bin, fp16."""
    weights = {name: value.half() for name, value in student.llama.state_dict().items()}
    weights["model.mm_projector.weight"] = student.projector.weight.detach().half()
    weights["model.mm_projector.bias"] = student.projector.bias.detach().half()
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "vocab_size": VOCAB_SIZE + 2,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", **SIZES,
        "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "rope_scaling": None,
        "image_aspect_ratio": "pad", "use_mm_proj": True, "mm_hidden_size": student.projector.in_features,
        "mm_use_im_start_end": True, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "clip",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, indent=2) + "\n"
    )


def pretrain_language(out: Path, clip: Path, work: Path, *, num_steps: int, batch_size: int = 10) -> None:
    """Train and write `out`, a LLaVA v1 folder; reads the tower at `clip`."""
    torch.manual_seed(0)
    if not (work / "vocabulary" / "tokenizer.model").exists():
        train_vocabulary(work / "vocabulary")
    shutil.copytree(work / "vocabulary", out, dirs_exist_ok=True)
    tokenizer = load_tokenizer(out)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tower = CLIPVisionModel.from_pretrained(clip, dtype=torch.float32)
    student = LanguageStudent(tokenizer, tower)
    held_out = next(batches(HELD_OUT_SEED, 48))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        write_llava_v1(student, out)
        return {f"held-out {key}": float(value) for key, value in student.losses(held_out).items()}

    train(student, student.losses, folder=work, name="language", num_steps=num_steps, batch_size=batch_size,
          lr=1.5e-3, evaluate=evaluate)  # fmt: skip
