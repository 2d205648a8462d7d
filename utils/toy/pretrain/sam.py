"""The tiny SAM: class-agnostic masks from points and boxes, trained like the published one.

Its image encoder is also supervised with the class of each pixel and the colour of its thing: it replaces an encoder
trained on a billion masks, and the toy world has only twenty classes.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from model.decoders.sam import SamSegmenter, SamSettings
from utils.toy.pretrain.common import (
    COLOURS,
    NUM_LABELS,
    PRETRAIN_SEED,
    Student,
    Trainer,
    colours_of_things,
    thing_map,
    train,
)
from utils.toy.scene import CLASSES, Scene, draw_scene

SETTINGS = SamSettings(
    image_size=256,
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
PROMPTS_PER_IMAGE = 6
NUM_COLOURS = len(COLOURS) + 1  # the last one for everything without a named colour


@cache
def class_weights(settings: SamSettings, num_scenes: int = 200) -> Tensor:
    """(NUM_LABELS,) float32, inverse square root of each label's frequency, with a mean of 1 over pixels.

    Without weights, sky and sea count a hundred times as much as a ball or a person.
    """
    scenes = (draw_scene(PRETRAIN_SEED, index) for index in range(num_scenes))
    counts = np.zeros(NUM_LABELS, dtype=np.int64)
    for scene in scenes:
        counts += np.bincount(pad(scene, settings)[2].ravel(), minlength=NUM_LABELS)
    shares = counts / counts.sum()
    weights = 1 / np.sqrt(np.maximum(shares, 1e-4))
    return torch.from_numpy(weights / (weights * shares).sum()).float()


def pad(scene: Scene, settings: SamSettings) -> tuple[np.ndarray, tuple[int, int], np.ndarray, np.ndarray]:
    """Image (3, side, side) uint8, its (height, width), labels and things (mask_side, mask_side) uint8."""
    side = settings.image_size
    height, width = scene.label.shape
    scale = side / max(height, width)
    size = (round(width * scale), round(height * scale))
    image = np.zeros((3, side, side), np.uint8)
    resized = np.asarray(Image.fromarray(scene.image).resize(size, Image.Resampling.BILINEAR))
    image[:, : size[1], : size[0]] = resized.transpose(2, 0, 1)
    maps = []
    for values, empty in ((scene.label, len(CLASSES)), (thing_map(scene), 0)):
        padded = np.full((side, side), empty, np.uint8)
        padded[: size[1], : size[0]] = np.asarray(
            Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
        )
        stride = side // settings.mask_side
        maps.append(padded[stride // 2 :: stride, stride // 2 :: stride])
    return image, (size[1], size[0]), maps[0], maps[1]


class SamStudent(Student):
    """SAM with a head that predicts the classes of the 4 x 4 pixels of a mask in each cell of the embedding."""

    def __init__(self, settings: SamSettings = SETTINGS) -> None:
        super().__init__()
        self.sam = SamSegmenter(settings)
        nn.init.trunc_normal_(self.sam.image_encoder.pos_embed, std=0.02)
        self.classes = nn.Linear(settings.prompt_embed_dim, 16 * NUM_LABELS)
        self.colours = nn.Linear(settings.prompt_embed_dim, 16 * NUM_COLOURS)
        self.register_buffer("class_weights", class_weights(settings), persistent=False)

    def prepare(self, scenes: list[Scene]) -> dict[str, Any]:
        """Images with their sizes, a label and a colour for each pixel of a mask, and prompts with their masks."""
        rng = np.random.default_rng(int(scenes[0].image.sum(dtype=np.int64)))
        images, sizes, labels, things = zip(*(pad(scene, self.sam.settings) for scene in scenes), strict=True)
        colours = [colours_of_things(scene)[thing] for scene, thing in zip(scenes, things, strict=True)]
        return {
            "images": torch.from_numpy(np.stack(images)),
            "sizes": sizes,
            "labels": torch.from_numpy(np.stack(labels)).long().view(-1),
            "colours": torch.from_numpy(np.stack(colours)).long().view(-1),
            "prompts": _prompts(labels, things, rng, self.sam.settings),
        }

    def losses(self, prepared: dict[str, Any]) -> dict[str, Tensor]:
        with torch.autocast(self.device_type, torch.bfloat16):
            # `encode` has no gradient, because the assistant's encoder is frozen. Here it is trained.
            encode = type(self.sam).encode.__wrapped__
            [embedding] = encode(self.sam, prepared["images"], prepared["sizes"])
            classes, colours = _per_pixel(self.classes, embedding), _per_pixel(self.colours, embedding)
            *prompts, targets = prepared["prompts"]
            logits, quality = self._masks(embedding, *prompts)
        class_loss = F.cross_entropy(classes, prepared["labels"], weight=self.class_weights)
        colour_loss = F.cross_entropy(colours, prepared["colours"])
        bce = F.binary_cross_entropy_with_logits(logits, targets)
        probabilities = logits.sigmoid().flatten(1)
        overlap = (probabilities * targets.flatten(1)).sum(1)
        total = probabilities.sum(1) + targets.flatten(1).sum(1)
        dice = (1 - (2 * overlap + 1) / (total + 1)).mean()
        with torch.no_grad():
            predicted = logits > 0
            both = (predicted & (targets > 0)).flatten(1).sum(1)
            iou = both / (predicted | (targets > 0)).flatten(1).sum(1).clamp(min=1)
        quality_loss = F.mse_loss(quality.squeeze(1), iou)
        return {
            "loss": class_loss + 0.5 * colour_loss + 2 * bce + dice + 0.1 * quality_loss,
            "class": class_loss,
            "colour": colour_loss,
            "bce": bce,
            "dice": dice,
            "iou": iou.mean(),
        }

    def _masks(
        self, embedding: Tensor, owners: Tensor, boxes: Tensor, points: Tensor, kinds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (n, mask_side, mask_side) and predicted IoU (n, 1) of one point or one box each."""
        encoder = self.sam.prompt_encoder
        with torch.autocast(self.device_type, enabled=False):  # positions in bfloat16 would be off by a cell
            by_point, _ = encoder(
                (points, torch.ones(len(points), 1)), None, None
            )  # (n, 2, dim), the second is padding
            by_box, _ = encoder(None, boxes, None)  # (n, 2, dim)
            positions = self.sam.dense_positions(embedding.float())
        sparse = torch.where(kinds[:, None, None], by_point, by_box)
        image = embedding[owners] + encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        decoder = self.sam.mask_decoder
        logits, tokens = decoder(sparse, image, positions)
        return logits.float(), decoder.iou_prediction_head(tokens)[:, :1].float()


def _per_pixel(head: nn.Linear, embedding: Tensor) -> Tensor:
    """Logits (B * mask_side * mask_side, labels) in float32 of a head that predicts 4 x 4 pixels from each cell."""
    logits = head(embedding.permute(0, 2, 3, 1)).float()
    return rearrange(logits, "b row column (p q label) -> (b row p column q) label", p=4, q=4)


def _prompts(
    labels: tuple[np.ndarray, ...],
    things: tuple[np.ndarray, ...],
    rng: np.random.Generator,
    settings: SamSettings,
) -> tuple[Tensor, ...]:
    """A few regions of each image (a thing or a stuff class), each prompted by a point inside it or by its box."""
    owners, boxes, points, kinds, targets = [], [], [], [], []
    stride = settings.image_size // settings.mask_side
    for number, (label, thing) in enumerate(zip(labels, things, strict=True)):
        regions = [thing == k for k in np.unique(thing) if k]
        regions += [(label == k) & (thing == 0) for k in np.unique(label[thing == 0]) if k != len(CLASSES)]
        for choice in rng.permutation(len(regions))[:PROMPTS_PER_IMAGE]:
            rows, columns = np.nonzero(regions[choice])
            pick = int(rng.integers(len(rows)))
            owners.append(number)
            points.append([[(columns[pick] + 0.5) * stride, (rows[pick] + 0.5) * stride]])
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * stride
            boxes.append(box + rng.uniform(-4, 4, 4))
            kinds.append(rng.random() < 0.5)
            targets.append(regions[choice])
    return (
        torch.tensor(owners),
        torch.tensor(np.stack(boxes), dtype=torch.float32),
        torch.tensor(points, dtype=torch.float32),
        torch.tensor(kinds),
        torch.from_numpy(np.stack(targets)).float(),
    )


def pretrain_sam(
    out: Path,
    trainer: Trainer,
    *,
    num_steps: int,
    batch_size: int = 16,
    patch_size: int = SETTINGS.patch_size,
) -> None:
    """Train and write `out`, a state dict in segment_anything's layout, fp16."""
    torch.manual_seed(0)
    student = SamStudent(replace(SETTINGS, patch_size=patch_size))
    train(student, trainer, name="sam", num_steps=num_steps, batch_size=batch_size,
          lr=8e-4, num_held_out=32)  # fmt: skip
    torch.save({name: value.half() for name, value in student.sam.state_dict().items()}, out)
