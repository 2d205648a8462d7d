"""A tiny SAM, from which the toy's SAM 2 learns; what it learns itself is in regions.py."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from model.decoders.sam import SamSegmenter, SamSettings
from model.inputs import Levels
from utils.toy.pretrain.common import NUM_LABELS, Trainer, thing_map, train
from utils.toy.pretrain.regions import MASK_SIDE, NUM_COLOURS, SIDE, Framed, Prompts, RegionStudent
from utils.toy.scene import CLASSES, Scene

SETTINGS = SamSettings(
    image_size=SIDE,
    encoder_dim=192,
    encoder_depth=4,
    encoder_num_heads=6,
    encoder_mlp_dim=768,
    encoder_global_blocks=(1, 3),
    encoder_window_size=8,
    prompt_embed_dim=128,
    decoder_mlp_dim=512,
    iou_head_dim=128,
)


def pad(scene: Scene) -> Framed:
    """The scene with its longest side resized to SIDE."""
    height, width = scene.label.shape
    scale = SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    image = np.zeros((3, SIDE, SIDE), np.uint8)
    resized = np.asarray(Image.fromarray(scene.image).resize(size, Image.Resampling.BILINEAR))
    image[:, : size[1], : size[0]] = resized.transpose(2, 0, 1)
    maps = []
    for values, empty in ((scene.label, len(CLASSES)), (thing_map(scene), 0)):
        padded = np.full((SIDE, SIDE), empty, np.uint8)
        padded[: size[1], : size[0]] = np.asarray(
            Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
        )
        stride = SIDE // MASK_SIDE
        maps.append(padded[stride // 2 :: stride, stride // 2 :: stride])
    return Framed(image=image, size=(size[1], size[0]), labels=maps[0], things=maps[1])


class SamStudent(RegionStudent):
    """SAM with a head that predicts the 4 x 4 pixels of a mask in each cell of the embedding."""

    def __init__(self) -> None:
        super().__init__(pad)
        self.sam = SamSegmenter(SETTINGS)
        nn.init.trunc_normal_(self.sam.image_encoder.pos_embed, std=0.02)
        self.classes = nn.Linear(SETTINGS.prompt_embed_dim, 16 * NUM_LABELS)
        self.colours = nn.Linear(SETTINGS.prompt_embed_dim, 16 * NUM_COLOURS)

    def features(self, prepared: dict[str, Any]) -> Levels:
        """See `RegionStudent`."""
        return type(self.sam).encode.__wrapped__(self.sam, prepared["images"], prepared["sizes"])

    def per_pixel(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """See `RegionStudent`."""
        cells = levels[0].permute(0, 2, 3, 1)
        classes, colours = (
            rearrange(head(cells).float(), "b row column (p q label) -> (b row p column q) label", p=4, q=4)
            for head in (self.classes, self.colours)
        )
        return classes, colours

    def masks(self, levels: Levels, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """See `RegionStudent`."""
        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        with torch.autocast(self.device_type, enabled=False):  # positions in bfloat16 would be off by a cell
            by_point, _ = encoder((prompts.points, torch.ones(len(prompts.points), 1)), None, None)
            by_box, _ = encoder(None, prompts.boxes, None)
            positions = self.sam.dense_positions(levels[0].float())
        sparse = prompts.sparse(by_point, by_box, encoder.not_a_point_embed.weight)
        without = encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        image = levels[0][prompts.owners] + prompts.dense.embeddings(encoder.mask_downscaling, without)
        logits, tokens = decoder(sparse, image, positions)
        return logits.float(), decoder.iou_prediction_head(tokens)[:, :1].float()


def pretrain_sam(out: Path, trainer: Trainer, *, num_steps: int, batch_size: int = 16) -> None:
    """Train and write `out`, a state dict in segment_anything's layout, fp16."""
    torch.manual_seed(0)
    student = SamStudent()
    train(student, trainer, name="sam", num_steps=num_steps, batch_size=batch_size,
          lr=8e-4, num_held_out=32)  # fmt: skip
    torch.save({name: value.half() for name, value in student.sam.state_dict().items()}, out)
