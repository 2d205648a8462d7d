"""The tiny CLIP: a vision transformer trained on many labelled images, in place of the published one.

Supervision on the patch states of the layer that LLaVA reads (the second last): the classes in the patch, the colour
of its thing, the thing's box and its attributes; on the pooled state: which classes are in the image.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from utils.toy.pretrain.attributes import NUM_ATTRIBUTES, NUM_SIMPLE, attributes
from utils.toy.pretrain.common import (
    COLOURS,
    NUM_LABELS,
    Square,
    Student,
    Trainer,
    colours_of_things,
    patch_histogram,
    thing_map,
    train,
)
from utils.toy.scene import CLASSES, Scene

SIDE, PATCH = 160, 16
CONFIG = CLIPVisionConfig(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=5,
    num_attention_heads=6,
    image_size=SIDE,
    patch_size=PATCH,
    projection_dim=192,
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pad_to_square(scene: Scene) -> Square:
    """Centre the scene in a square of CLIP's mean colour (LLaVA's `image_aspect_ratio: pad`), SIDE pixels."""
    height, width = scene.label.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    image = np.empty((side, side, 3), np.uint8)
    image[:] = [int(255 * channel) for channel in MEAN]
    image[top : top + height, left : left + width] = scene.image
    maps = []
    for values, empty in ((scene.label, len(CLASSES)), (thing_map(scene), 0)):
        padded = np.full((side, side), empty, np.uint8)
        padded[top : top + height, left : left + width] = values
        maps.append(np.asarray(Image.fromarray(padded).resize((SIDE, SIDE), Image.Resampling.NEAREST)))
    resized = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    scale = SIDE / side
    return Square(resized, maps[0], maps[1], scene, (left * scale, top * scale), scale)


def normalise(images: Tensor) -> Tensor:
    """(B, SIDE, SIDE, 3) uint8 -> (B, 3, SIDE, SIDE) float32."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class ClipStudent(Student):
    """The tower and its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(CONFIG)
        dim = CONFIG.hidden_size
        self.classes = nn.Linear(dim, NUM_LABELS)
        self.colours = nn.Linear(dim, len(COLOURS) + 1)
        self.boxes = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))
        self.attributes = nn.Linear(dim, NUM_ATTRIBUTES)
        self.presence = nn.Linear(dim, len(CLASSES))

    def prepare(self, scenes: list[Scene]) -> tuple[Tensor, ...]:
        """The images (B, SIDE, SIDE, 3) uint8, and `_targets` stacked."""
        squares = [pad_to_square(scene) for scene in scenes]
        columns = zip(*((square.image, *_targets(square)) for square in squares), strict=True)
        return tuple(torch.from_numpy(np.stack(column)) for column in columns)

    def losses(self, prepared: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels, colours, boxes, has_box, facts, presence = prepared
        with torch.autocast(self.device_type, torch.bfloat16):
            out = self.tower(normalise(images), output_hidden_states=True)
            states = out.hidden_states[-2][:, 1:].float()  # (B, patches, dim)
            pooled = out.pooler_output.float()
        class_loss = F.cross_entropy(self.classes(states).transpose(1, 2), labels.transpose(1, 2))
        colour_loss = F.cross_entropy(self.colours(states).transpose(1, 2), colours.transpose(1, 2))
        box_loss = ((self.boxes(states) - boxes).abs().sum(-1) * has_box).sum() / has_box.sum().clamp(min=1)
        known = ~facts.isnan() & (has_box > 0)[..., None]
        attribute_logits = self.attributes(states)[known]
        weights = torch.ones(NUM_ATTRIBUTES)
        weights[NUM_SIMPLE:] = 4  # relations are rarer and harder
        attribute_loss = F.binary_cross_entropy_with_logits(
            attribute_logits, facts[known], weight=weights.expand_as(known)[known]
        )
        presence_loss = F.binary_cross_entropy_with_logits(self.presence(pooled), presence)
        return {
            "loss": class_loss + 0.5 * colour_loss + box_loss + attribute_loss + 0.5 * presence_loss,
            "class": class_loss,
            "colour": colour_loss,
            "box": box_loss,
            "attribute": attribute_loss,
            "attributes right": ((attribute_logits > 0) == (facts[known] > 0.5)).float().mean(),
            "presence": presence_loss,
        }


def _targets(square: Square) -> tuple[np.ndarray, ...]:
    """Per patch: class and colour fractions, box of its main thing, whether it has one, attributes; presence."""
    labels = np.sqrt(
        patch_histogram(square.label, PATCH, NUM_LABELS)
    )  # so that classes that cover little of a patch count too
    labels /= labels.sum(1, keepdims=True)
    boxes = np.zeros((256, 4), np.float32)
    for number, thing in enumerate(square.scene.things):
        corner = np.array(square.offset * 2)
        boxes[number + 1] = (np.array(thing.box) * square.scale + corner) / SIDE
    colours = np.sqrt(patch_histogram(colours_of_things(square.scene)[square.thing], PATCH, len(COLOURS) + 1))
    colours /= colours.sum(1, keepdims=True)
    shares = patch_histogram(square.thing, PATCH, len(square.scene.things) + 1)[:, 1:]
    facts = attributes(square.scene)
    if shares.shape[1] == 0:
        shares, facts = np.zeros((len(labels), 1), np.float32), np.zeros((1, NUM_ATTRIBUTES), np.float32)
    main = shares.argmax(1)
    has_box = (shares.max(1) > 0.1).astype(np.float32)
    presence = np.isin(np.arange(len(CLASSES)), np.unique(square.scene.label)).astype(np.float32)
    return labels, colours, boxes[main + 1], has_box, facts[main], presence


def pretrain_clip(out: Path, trainer: Trainer, *, num_steps: int, batch_size: int = 32) -> None:
    """Train the tower and write it to `out` as a CLIP folder, fp16."""
    torch.manual_seed(0)
    student = ClipStudent()
    train(student, trainer, name="clip", num_steps=num_steps, batch_size=batch_size,
          lr=1e-3, num_held_out=48)  # fmt: skip
    student.tower.half().save_pretrained(out)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(out)
