"""Synthetic images with referring conversations about them, for the benchmarks of training."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.sequence import referring_conversation

HEIGHT, WIDTH = 480, 640
# RefCOCO's expressions are three to four words long on average, RefCOCOg's eight.
EXPRESSIONS = (
    "left man", "the red car near the house", "woman in a blue shirt", "the biggest tree", "dog on the right",
    "the small boat that is on the lake", "second chair from left", "white cat", "the person behind the table",
    "bird in the middle",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images with conversations about them, and a mask for each."""

    images: list[np.ndarray]  # (height, width, 3) uint8
    conversations: list[Conversation]
    owners: list[int]  # for each conversation the index of its image
    masks: list[np.ndarray]  # for each image (num_conversations, height, width) uint8


def make_scene(
    processor: LasagnaProcessor, num_images: int, num_conversations: int, *, seed: int = 0
) -> Scene:
    """Smooth random images; every conversation refers to an ellipse."""
    rng = np.random.default_rng(seed)
    images, conversations, masks = [], [], []
    for _ in range(num_images):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        images.append(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
        drawn = np.zeros((num_conversations, HEIGHT, WIDTH), dtype=np.uint8)
        for number, mask in enumerate(drawn):
            centre = int(rng.integers(100, WIDTH - 100)), int(rng.integers(100, HEIGHT - 100))
            cv2.ellipse(mask, centre, (int(rng.integers(20, 100)), 60), 0, 0, 360, 1, -1)
            expression = EXPRESSIONS[number % len(EXPRESSIONS)]
            conversations.append(referring_conversation(expression, True, rng, processor.format))
        masks.append(drawn)
    owners = [image for image in range(num_images) for _ in range(num_conversations)]
    return Scene(images=images, conversations=conversations, owners=owners, masks=masks)
