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
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from model.conversation import encode_conversation
from model.tokens import IMAGE, load_tokenizer
from utils.toy.pretrain.clip import PATCH, normalise, pad_to_square
from utils.toy.pretrain.common import (
    NUM_LABELS,
    Square,
    Student,
    patch_histogram,
    train,
)
from utils.toy.pretrain.talk import GRID, Phrases, conversation
from utils.toy.pretrain.vocabulary import VOCAB_SIZE, train_vocabulary
from utils.toy.scene import CLASSES, Scene

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


class LanguageStudent(Student):
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
    train(student, folder=work, name="language", num_steps=num_steps, batch_size=batch_size,
          lr=1.5e-3, num_held_out=48, when_evaluated=lambda: write_llava_v1(student, out))  # fmt: skip
