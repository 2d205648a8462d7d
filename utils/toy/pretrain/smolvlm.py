"""A toy base of another family: a tiny SmolVLM that sees and says what the toy LLaVA does.

    python -m utils.toy.pretrain.smolvlm --out runs/smolvlm      # the folder of a base, as on the hub

Its language model is the toy LLaVA's. Its vision tower begins as the toy CLIP's and learns to give the features that
the LLaVA's projector gives: SigLIP-like towers have no class token and no norm before the first layer, so the
embeddings, the first layer, the last norm and the connector train, and the other layers stay. What trains is shipped
(`assets/toy/smolvlm.safetensors`, about 1 MB), the rest is put together from the files of `assets/toy`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AddedToken,
    CLIPVisionModel,
    Idefics3Processor,
    PreTrainedTokenizerBase,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
)

from model.huggingface import from_pretrained
from model.text.tokenizer_files import load_tokenizer
from utils.common.commands import command, script_parser
from utils.common.paths import path_flag, writable_folder
from utils.toy.pretrain.clip import CONFIG as CLIP
from utils.toy.pretrain.clip import MEAN, PATCH, SIDE, STD, normalise
from utils.toy.pretrain.common import Student, Trainer, train
from utils.toy.pretrain.language import SIZES
from utils.toy.pretrain.vocabulary import VOCAB_SIZE
from utils.toy.scene import Scene

ASSETS = Path("assets/toy")
TOWER_FILE = "smolvlm.safetensors"
NUM_LAYERS = CLIP.num_hidden_layers - 1  # LLaVA reads the second last
NUM_ROWS = VOCAB_SIZE + 64  # of the embedding matrix, with unused ones
IMAGE_TOKEN = "<image>"
SPECIAL = ("<fake_token_around_image>", IMAGE_TOKEN, "<global-img>", "<end_of_utterance>")
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
# LLaVA's prompt, as a chat template: it is what the language model has learned from.
TEMPLATE = (
    "{{ bos_token + '" + SYSTEM.replace("'", "\\'") + "' }}{% for m in messages %}"
    "{{ ' USER: ' if m['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
TRAINED = ("embeddings.", "encoder.layers.0.", "post_layernorm.")  # of the tower


def base_config(tokenizer: PreTrainedTokenizerBase) -> SmolVLMConfig:
    """A SmolVLM with one tile, the whole image, of 100 tokens."""
    return SmolVLMConfig(
        text_config={"model_type": "llama", "vocab_size": NUM_ROWS, "bos_token_id": 1, "eos_token_id": 2,
                     "pad_token_id": 0, **SIZES},
        vision_config={
            "hidden_size": CLIP.hidden_size, "intermediate_size": CLIP.intermediate_size,
            "num_hidden_layers": NUM_LAYERS, "num_attention_heads": CLIP.num_attention_heads,
            "image_size": SIDE, "patch_size": PATCH, "hidden_act": CLIP.hidden_act,
            "layer_norm_eps": CLIP.layer_norm_eps,
        },
        scale_factor=1, pad_token_id=0, tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )  # fmt: skip


def base_tokenizer(llava: Path) -> PreTrainedTokenizerBase:
    """The toy LLaVA's, with the special tokens of the family and a chat template."""
    tokenizer = load_tokenizer(llava)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class SmolStudent(Student):
    """Tower and connector, trained to give what the toy LLaVA's tower and projector give for the same pixels."""

    def __init__(self, clip: Path, llava: Path) -> None:
        super().__init__()
        model = SmolVLMForConditionalGeneration(base_config(base_tokenizer(llava)))
        self.tower, self.connector = model.model.vision_model, model.model.connector
        teacher = from_pretrained(CLIPVisionModel, clip, dtype=torch.float32).eval().requires_grad_(False)
        weights = torch.load(llava / "pytorch_model.bin", weights_only=True)
        projector = [weights[f"model.mm_projector.{name}"].float() for name in ("weight", "bias")]
        self.teacher = (teacher, projector)  # in a tuple, so that it is neither trained nor saved
        self._start_from(teacher, projector[0])

    @torch.no_grad()
    def _start_from(self, clip: CLIPVisionModel, projection: Tensor) -> None:
        """CLIP's patches, positions and layers; only what `TRAINED` names will differ from them."""
        start = self.tower.state_dict()
        for name, value in clip_as_siglip(clip.state_dict()).items():
            start[name].copy_(value)
        self.tower.embeddings.patch_embedding.bias.zero_()
        self.connector.modality_projection.proj.weight.copy_(projection)
        for name, parameter in self.tower.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED))

    def prepare(self, scenes: list[Scene]) -> Tensor:
        """(B, SIDE, SIDE, 3) uint8: scenes squashed to a square, as the family's image processor does."""
        sides = (SIDE, SIDE)
        images = [Image.fromarray(scene.image).resize(sides, Image.Resampling.BICUBIC) for scene in scenes]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    def losses(self, prepared: Tensor) -> dict[str, Tensor]:
        pixels = normalise(prepared)
        teacher, projector = self.teacher
        teacher, (weight, bias) = teacher.to(pixels.device), (each.to(pixels.device) for each in projector)
        with torch.autocast(self.device_type, torch.bfloat16):
            with torch.no_grad():
                states = teacher(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            target = F.linear(states.float(), weight, bias)
            found = self.connector(self.tower(pixels).last_hidden_state).float()
        error = (found - target).square().mean() / target.square().mean()
        alike = F.cosine_similarity(found, target, dim=-1).mean()
        return {"loss": error + 1 - alike, "relative squared error": error, "cosine": alike}


def clip_as_siglip(clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's weights under the names of the tower, as far as it has them."""
    weights = {}
    for name, value in clip.items():
        name = name.removeprefix("vision_model.")
        if name.startswith("encoder.layers."):
            if int(name.split(".")[2]) < NUM_LAYERS:
                weights[name] = value
        elif name == "embeddings.patch_embedding.weight":
            weights[name] = value
        elif name == "embeddings.position_embedding.weight":
            weights[name] = value[1:]  # without the class token's
    return weights


def pretrain_smolvlm(out: Path, trainer: Trainer, *, num_steps: int, batch_size: int = 16) -> None:
    """Trains tower and connector beside the toy CLIP and LLaVA in `out`, and writes what trained there, fp16."""
    torch.manual_seed(0)
    student = SmolStudent(out / "clip", out / "llava")
    train(student, trainer, name="smolvlm", num_steps=num_steps, batch_size=batch_size,
          lr=1e-3, num_held_out=48)  # fmt: skip
    tower = {
        f"vision_model.{name}": value
        for name, value in student.tower.named_parameters()
        if name.startswith(TRAINED)
    }
    connector = {f"connector.{name}": value for name, value in student.connector.named_parameters()}
    save_file(
        {name: value.detach().half().contiguous() for name, value in (tower | connector).items()},
        out / TOWER_FILE,
    )


def write_base(out: Path, base: Path = ASSETS) -> Path:
    """The whole base as a Hugging Face folder: config, weights in fp16, tokenizer, chat template, image processor."""
    tokenizer = base_tokenizer(base / "llava")
    model = SmolVLMForConditionalGeneration(base_config(tokenizer)).half()
    clip = from_pretrained(CLIPVisionModel, base / "clip", dtype=torch.float16)
    found = {f"model.vision_model.{name}": value for name, value in clip_as_siglip(clip.state_dict()).items()}
    found |= {f"model.{name}": value for name, value in load_file(base / TOWER_FILE).items()}
    for name, value in torch.load(base / "llava" / "pytorch_model.bin", weights_only=True).items():
        if name == "lm_head.weight":
            found[name] = with_all_rows(value)
        elif "mm_projector" not in name:
            is_embedding = name == "model.embed_tokens.weight"
            found[f"model.text_model.{name.removeprefix('model.')}"] = (
                with_all_rows(value) if is_embedding else value
            )
    model.load_state_dict(found)  # strict: no weight keeps its random value
    model.save_pretrained(out)
    reader = SmolVLMImageProcessor(
        do_image_splitting=False, size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE},
        image_mean=MEAN, image_std=STD, resample=Image.Resampling.BICUBIC,
    )  # fmt: skip
    Idefics3Processor(
        reader, tokenizer, image_seq_len=(SIDE // PATCH) ** 2, chat_template=tokenizer.chat_template
    ).save_pretrained(out)
    return out


def with_all_rows(matrix: Tensor) -> Tensor:
    """(NUM_ROWS, dim): LLaVA's rows, and their mean for the tokens that it has not."""
    mean = matrix.float().mean(0, keepdim=True).to(matrix)
    return torch.cat([matrix, mean.expand(NUM_ROWS - len(matrix), -1)])


@command("utils.toy.pretrain.smolvlm")
def main(argv: Sequence[str] | None = None) -> int:
    parser = script_parser("utils.toy.pretrain.smolvlm", __doc__)
    parser.add_argument("--out", type=path_flag, default=Path("runs/smolvlm"), help="folder to write")
    args = parser.parse_args(argv)
    print(write_base(writable_folder(args.out, "--out")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
