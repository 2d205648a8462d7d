"""The tiny LLaVA: captions and questions about scenes, in the original LLaVA v1 layout.

The vocabulary is a sentencepiece BPE with byte fallback, like LLaMA's. The tower is frozen; projector and language
model are trained together. Auxiliary losses replace the alignment stage and the grounded data of the published
models: each projected patch is classified with the word embeddings ("sky", "red"); from the end of a class name or a
referring expression on, auxiliary heads, which are discarded afterwards, predict from the hidden state the patches
and the box of its referent; and two attention heads are supervised to attend to those patches. Without them, class
names become grounded only after hours on two cores, and attributes such as "the red one" not even then. The model
never sees a segmentation token or a list of classes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.huggingface import from_pretrained
from model.text.encoded import Encoded, encode_conversation
from model.text.special_tokens import IMAGE
from model.text.tokenizer_files import load_tokenizer
from utils.toy.pretrain.clip import PATCH, normalise, pad_to_square
from utils.toy.pretrain.common import (
    COLOURS,
    NUM_LABELS,
    Square,
    Student,
    Trainer,
    colours_of_things,
    patch_histogram,
    train,
)
from utils.toy.pretrain.grounding import Place, Places, Words, places_of
from utils.toy.pretrain.talk import GRID, Phrases, conversation
from utils.toy.pretrain.vocabulary import VOCAB_SIZE, train_vocabulary
from utils.toy.scene import CLASSES, WALLS, Scene

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
# The words of expressions, besides names.
DISTINCTIONS = (
    *COLOURS, *WALLS, "left", "leftmost", "right", "rightmost", "upper", "top", "lower", "bottom", "biggest",
    "largest", "smallest", "far", "middle", "on", "in", "at", "of", "to", "next", "near", "close",
)  # fmt: skip
LOOKUP_LAYER, LOOKUP_HEADS = 2, 2  # the third of four layers learns to ground names and expressions


class LanguageStudent(Student):
    """LLaMA and a linear projector on top of the frozen tower."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.tower = [
            tower.eval().requires_grad_(False)
        ]  # in a list, so that it is not a submodule and not saved
        self.llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE + 2, **SIZES))
        self.projector = nn.Linear(tower.config.hidden_size, SIZES["hidden_size"])
        self._start_looking()
        self.names = [self._ids(name)[0] for name in CLASSES]
        self.colours = [self._ids(colour)[0] for colour in COLOURS]
        self.aligned = nn.Parameter(torch.tensor(1.0))  # log of the scale of the auxiliary logits
        # Short answers begin with yes, no, or the white space before digits.
        self.words = Words(
            names=dict(zip(self.names, CLASSES, strict=True)),
            colours={self._ids(colour)[0]: colour for colour in (*COLOURS, *WALLS)},
            answers={self._ids(word)[0] for word in ("yes", "no", "3")} | {tokenizer.eos_token_id},
            heard=tuple(self._ids(word)[0] for word in (*CLASSES, *DISTINCTIONS)),
        )
        dim = SIZES["hidden_size"]
        self.heard = nn.Linear(dim, len(self.words.heard))
        nn.init.constant_(self.heard.bias, -3.0)  # few words occur
        self.places = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, GRID**2)) for _ in range(2)
        )
        self.boxes = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))
            for _ in range(2)
        )

    def _start_looking(self) -> None:
        """Initial values: words and patches have equal scale, and the lookup heads attend to similar states."""
        nn.init.normal_(self.llama.get_input_embeddings().weight, std=0.3)
        attention = self.llama.model.layers[LOOKUP_LAYER].self_attn
        rows = LOOKUP_HEADS * attention.head_dim
        with torch.no_grad():
            attention.q_proj.weight[:rows].normal_(std=0.05)
            attention.k_proj.weight[:rows].copy_(attention.q_proj.weight[:rows])

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def prepare(self, scenes: list[Scene]) -> dict[str, Any]:
        """Token ids and labels (B, length), images, the class fractions of each patch, and the grounding targets."""
        rng = np.random.default_rng(int(scenes[0].image.sum(dtype=np.int64)))
        squares = [pad_to_square(scene) for scene in scenes]
        encoded: list[Encoded] = []
        early: list[dict[int, Place]] = []
        late: list[dict[int, Place]] = []
        for scene, square in zip(scenes, squares, strict=True):
            phrases: Phrases = {}
            text = conversation(scene, rng, square, phrases)
            encoded.append(
                encode_conversation(self.tokenizer, text, prompt="llava_v1", num_image_tokens=GRID**2)
            )
            said = {tuple(self._ids(phrase)): spoken for phrase, spoken in phrases.items()}
            for places, to_answer in ((early, False), (late, True)):
                tokens = encoded[-1].input_ids
                places.append(places_of(tokens, square, said, self.words, to_answer=to_answer))
        pad = nn.utils.rnn.pad_sequence
        return {
            "images": torch.from_numpy(np.stack([square.image for square in squares])),
            "ids": pad([torch.tensor(e.input_ids) for e in encoded], batch_first=True),
            "labels": pad([torch.tensor(e.labels) for e in encoded], batch_first=True, padding_value=-100),
            "shares": _shares(squares, lambda square: square.label, NUM_LABELS),
            "colours": _shares(
                squares, lambda square: colours_of_things(square.scene)[square.thing], len(COLOURS) + 1
            ),
            "places": (Places.of(early, self.words), Places.of(late, self.words)),
        }

    def losses(self, prepared: dict[str, Any]) -> dict[str, Tensor]:
        ids, labels = prepared["ids"], prepared["labels"]
        with torch.autocast(self.device_type, torch.bfloat16):
            with torch.no_grad():
                pixels = normalise(prepared["images"])
                tower = self.tower[0].to(pixels.device)
                seen = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            patches = self.projector(seen).float()  # (B, patches, hidden)
            is_image = ids == self.tokenizer.convert_tokens_to_ids(IMAGE)
            embeds = self.llama.get_input_embeddings()(ids.masked_fill(is_image, 0))
            embeds = embeds.masked_scatter(is_image[..., None].expand_as(embeds), patches)
            # Right padding and causal attention: no mask is needed.
            states = self.llama.model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
            hidden = states[-1]
            learned = labels[:, 1:] != -100
            logits = self.llama.lm_head(hidden[:, :-1][learned]).float()
        targets = labels[:, 1:][learned]
        text_loss = F.cross_entropy(logits, targets)
        aligned_loss = self._alignment(patches, prepared["shares"], self.names)
        aligned_loss = aligned_loss + self._alignment(patches, prepared["colours"], self.colours)
        # Supervised in the middle of the model, where names should be grounded, and at its end, where answers are
        # predicted.
        grounded = [
            self._grounding(head, box_head, layer, places)
            for head, box_head, layer, places in zip(
                self.places, self.boxes, (states[len(states) // 2], hidden), prepared["places"], strict=True
            )
        ]
        heard_loss, looked_loss = self._lookup(states[LOOKUP_LAYER].float(), is_image, prepared["places"][0])
        right = logits.argmax(-1) == targets
        grounding_loss = sum(5 * place + box for place, box in grounded) + 0.5 * (looked_loss + heard_loss)
        return {
            "loss": text_loss + 0.2 * aligned_loss + grounding_loss,
            "text": text_loss,
            "aligned": aligned_loss,
            "place": grounded[-1][0],
            "box": grounded[-1][1],
            "heard": heard_loss,
            "looked": looked_loss,
            "tokens right": right.float().mean(),
        } | self._answer_scores(targets, right)

    def _grounding(
        self, head: nn.Module, box_head: nn.Module, states: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of the referent's patches, and L1 of its box where it is a single thing."""
        states = states[places.rows, places.columns].float()
        is_thing = ~places.boxes.isnan().any(1)
        place_loss = F.binary_cross_entropy_with_logits(head(states), places.shares)
        box_loss = (box_head(states[is_thing]) - places.boxes[is_thing]).abs().sum(1).mean()
        return place_loss, box_loss

    def _answer_scores(self, targets: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Teacher-forced accuracy of yes / no and of single digits."""
        yes, no = (self._ids(word)[0] for word in ("yes", "no"))
        digits = {i for t, i in self.tokenizer.get_vocab().items() if t.lstrip("▁").isdigit()}
        polar = (targets == yes) | (targets == no)
        box = torch.tensor([int(t) in digits for t in targets])
        return {"yes/no": right[polar].float().mean(), "digits": right[box].float().mean()}

    def _lookup(self, states: Tensor, is_image: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Auxiliary losses of a layer: recognising the words of a phrase, and attending to its referent.

        At the end of names and expressions: binary cross-entropy of the words they consist of, summed over words,
        from the input of the layer's attention (otherwise the state of a name ignores the colour before it);
        cross-entropy of the heads' attention against the patches of the target, or against the first token where
        there is no target. `states` (B, length, hidden) are the layer's input.
        """
        layer = self.llama.model.layers[LOOKUP_LAYER]
        attention, dim = layer.self_attn, layer.self_attn.head_dim
        normed = layer.input_layernorm(states)
        heard = self.heard(normed[places.rows, places.columns])
        heard_loss = F.binary_cross_entropy_with_logits(heard, places.heard, reduction="none").sum(1).mean()
        columns = torch.arange(states.shape[1])
        cos, sin = self.llama.model.rotary_emb(states, columns[None])
        width = LOOKUP_HEADS * dim
        keys, queries = (
            F.linear(normed, proj.weight[:width]).unflatten(-1, (LOOKUP_HEADS, dim)).transpose(1, 2)
            for proj in (attention.k_proj, attention.q_proj)
        )  # (B, heads, length, dim)
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        scores = torch.einsum("nhd,nhld->nhl", queries[places.rows, :, places.columns], keys[places.rows])
        later = columns > places.columns[:, None]  # (N, length)
        log_attention = (scores * dim**-0.5).masked_fill(later[:, None], -torch.inf).log_softmax(-1)
        wanted = torch.zeros(later.shape)
        total = places.shares.sum(1, keepdim=True)
        wanted[is_image[places.rows]] = (places.shares / total.clamp(min=1e-6)).flatten()
        wanted[:, 0] = (total[:, 0] == 0).float()
        looked_loss = -(wanted[:, None] * log_attention.masked_fill(later[:, None], 0)).sum(-1).mean()
        return heard_loss, looked_loss

    def _alignment(self, patches: Tensor, shares: Tensor, words: list[int]) -> Tensor:
        """Classification of each patch with the word embeddings: cross-entropy where one of the words applies."""
        most, target = shares[..., : len(words)].max(-1)
        sure = most > 0.2
        directions = F.normalize(self.llama.get_input_embeddings().weight[words].float(), dim=-1)
        logits = F.normalize(patches, dim=-1) @ directions.T * self.aligned.exp() * 5
        return F.cross_entropy(logits[sure], target[sure])


def _shares(squares: list[Square], values: Callable[[Square], np.ndarray], num_values: int) -> Tensor:
    """(B, patches, num_values): the fraction of each patch that has each value."""
    return torch.from_numpy(np.stack([patch_histogram(values(s), PATCH, num_values) for s in squares]))


def write_llava_v1(student: LanguageStudent, folder: Path) -> None:
    """The original layout: LLaMA's names, `model.mm_projector.*`, one pytorch_model.bin, fp16."""
    weights = {name: value.half().cpu() for name, value in student.llama.state_dict().items()}
    weights["model.mm_projector.weight"] = student.projector.weight.detach().half().cpu()
    weights["model.mm_projector.bias"] = student.projector.bias.detach().half().cpu()
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


def pretrain_language(
    out: Path, clip: Path, trainer: Trainer, *, num_steps: int, batch_size: int = 10
) -> None:
    """Trains and writes `out`, a LLaVA v1 folder; reads the tower at `clip`."""
    torch.manual_seed(0)
    vocabulary = trainer.folder / "vocabulary"
    if not (vocabulary / "tokenizer.model").exists():
        train_vocabulary(vocabulary)
    shutil.copytree(vocabulary, out, dirs_exist_ok=True)
    tokenizer = load_tokenizer(out)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tower = from_pretrained(CLIPVisionModel, clip, dtype=torch.float32)
    student = LanguageStudent(tokenizer, tower)
    # Strong weight decay keeps the hidden states of words small; large ones dominate what attention adds.
    train(student, trainer, name="language", num_steps=num_steps, batch_size=batch_size, lr=1.5e-3,
          weight_decay=0.3, num_held_out=48, when_evaluated=lambda: write_llava_v1(student, out))  # fmt: skip
