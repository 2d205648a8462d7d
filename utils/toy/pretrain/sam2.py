"""The tiny SAM 2 of the toy world: it learns the embedding of a tiny SAM, and draws finer masks; see regions.py."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.checkpoints.layouts.mask_decoder import read_mask_decoder
from model.checkpoints.layouts.sam2 import RULES, named_as_library
from model.decoders.pixels import normalized
from model.decoders.sam import SamSegmenter, SamSettings
from model.decoders.sam2 import Sam2Segmenter, Sam2Settings
from model.inputs import Levels
from utils.toy.pretrain.common import NUM_LABELS, Trainer, thing_map, train
from utils.toy.pretrain.regions import MASK_SIDE, NUM_COLOURS, SIDE, Framed, Prompts, RegionStudent
from utils.toy.scene import Scene

WIDTH = 128
# What a SAM calls otherwise than the original SAM 2 does, of prompt encoder and mask decoder.
OLDER_NAMES = ((r"\.lin1\.", ".proj_in."), (r"\.lin2\.", ".proj_out."))
DIMS = (32, 64, 160, 192)  # of the stages; two that are equal the library cannot pool
SETTINGS = Sam2Settings(
    vision_config={
        "backbone_config": {
            "hidden_size": DIMS[0],
            "num_attention_heads": 1,
            "image_size": SIDE,
            "blocks_per_stage": [1, 2, 4, 1],
            "embed_dim_per_stage": list(DIMS),
            "num_attention_heads_per_stage": [1, 2, 5, 6],
            "window_size_per_stage": [8, 8, 8, 8],
            "global_attention_blocks": [4, 6],
            "window_positional_embedding_background_size": [8, 8],
        },
        "backbone_channel_list": list(DIMS[::-1]),
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": WIDTH,
    },
    prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16},
    mask_decoder_config={"hidden_size": WIDTH, "mlp_dim": 512, "iou_head_hidden_dim": 128},
)


def squash(scene: Scene) -> Framed:
    """The scene resized to a square; its aspect ratio is not kept."""
    image = np.asarray(Image.fromarray(scene.image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    labels, things = (
        np.asarray(Image.fromarray(values).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST))
        for values in (scene.label, thing_map(scene))
    )
    return Framed(image=image.transpose(2, 0, 1), size=(SIDE, SIDE), labels=labels, things=things)


class Sam2Student(RegionStudent):
    """SAM 2 with heads that predict pixels from the finest level, which knows borders, and from the coarsest.

    The coarsest level learns the embedding of a SAM, with whose prompt encoder and mask decoder it starts.
    """

    def __init__(self, teacher: SamSegmenter) -> None:
        super().__init__(squash)
        self.sam = Sam2Segmenter(SETTINGS)
        for name, parameter in self.sam.named_parameters():
            if "pos_embed" in name:
                nn.init.trunc_normal_(parameter, std=0.02)
        start_from(self.sam, teacher)
        self.classes = nn.Linear(WIDTH, NUM_LABELS)
        self.colours = nn.Linear(WIDTH, NUM_COLOURS)
        self.coarse = nn.Linear(WIDTH, 16 * (NUM_LABELS + NUM_COLOURS))
        self.teacher = teacher.eval().requires_grad_(False)

    def features(self, prepared: dict[str, Any]) -> Levels:
        """See `RegionStudent`."""
        settings = self.sam.settings
        assert settings.pixel_mean, "filled in by the settings"
        assert settings.pixel_std, "filled in by the settings"
        pixels = normalized(prepared["images"], SIDE, settings.pixel_mean, settings.pixel_std, settings.title)
        with self._attention():
            return self.sam.vision_encoder(pixels).fpn_hidden_states[:3]

    def per_pixel(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """See `RegionStudent`."""
        pixels, cells = levels[0].permute(0, 2, 3, 1), levels[2].permute(0, 2, 3, 1)
        local = torch.cat([self.classes(pixels), self.colours(pixels)], dim=-1).float().flatten(0, 2)
        wide = self.coarse(cells).float()
        logits = local + rearrange(wide, "b row column (p q label) -> (b row p column q) label", p=4, q=4)
        return logits[:, :NUM_LABELS], logits[:, NUM_LABELS:]

    def masks(self, levels: Levels, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """See `RegionStudent`."""
        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        with torch.autocast(self.device_type, enabled=False):  # positions in bfloat16 would be off by a cell
            labels = torch.ones(len(prompts.points), 1, 1, dtype=torch.int)
            by_point, _ = encoder(prompts.points.unsqueeze(1), labels, None, None)  # (n, 1, 2, dim)
            by_box, _ = encoder(None, None, prompts.boxes.unsqueeze(1), None)  # (n, 1, 3, dim)
            positions = self.sam.dense_positions(levels[2].float())
        sparse = prompts.sparse(by_point[:, 0], by_box[:, 0], encoder.not_a_point_embed.weight)
        fine, middle, coarse = levels
        coarse = coarse + self.sam.no_memory_embedding.view(1, -1, 1, 1)
        without = encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        with self._attention():
            logits, tokens = decoder(
                sparse,
                coarse[prompts.owners] + prompts.dense.embeddings(encoder.mask_embed, without),
                positions,
                decoder.conv_s0(fine)[prompts.owners],
                decoder.conv_s1(middle)[prompts.owners],
            )
        return logits.float(), decoder.iou_prediction_head(tokens)[:, :1].float()

    def lesson(self, levels: Levels, prepared: dict[str, Any]) -> dict[str, Tensor]:
        """How far the coarsest level is from the SAM's embedding of the same images, in units of its variance."""
        [embedding] = self.teacher.encode(prepared["images"], prepared["sizes"])
        embedding = embedding.float()
        return {"distance": F.mse_loss(levels[2].float(), embedding) / embedding.var()}

    def _attention(self) -> AbstractContextManager[Any]:
        """On a CPU in 16 bits the backward of the fused kernel takes half of a step."""
        return sdpa_kernel(SDPBackend.MATH) if self.device_type == "cpu" else nullcontext()


def start_from(sam: Sam2Segmenter, teacher: SamSegmenter) -> None:
    """Take prompt encoder and mask decoder of a SAM, as far as it has them; the finer levels add nothing yet."""
    own = sam.state_dict()
    for name, value in named_as_library(teacher.state_dict(), (*RULES, *OLDER_NAMES)).items():
        if name in own:
            own[name].copy_(value)
    for layer in (sam.mask_decoder.conv_s0, sam.mask_decoder.conv_s1):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(sam.no_memory_embedding)


def pretrain_sam2(out: Path, teacher: Path, trainer: Trainer, *, num_steps: int, batch_size: int = 8) -> None:
    """Train and write `out`, a folder in the library's layout, fp16. `teacher`: what `pretrain_sam` wrote."""
    torch.manual_seed(0)
    settings, weights = read_mask_decoder(teacher)
    assert isinstance(settings, SamSettings)
    sam = SamSegmenter(settings)
    sam.load_state_dict(weights)
    student = Sam2Student(sam)
    train(student, trainer, name="sam2", num_steps=num_steps, batch_size=batch_size,
          lr=1e-3, num_held_out=32)  # fmt: skip
    write_sam2(student.sam, out)


def write_sam2(sam: Sam2Segmenter, out: Path) -> None:
    """A folder that `--vision_pretrained` and the library read."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in sam.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    sam.settings.config.save_pretrained(out)
