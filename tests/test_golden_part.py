"""Preprocessing and metrics against the numbers of the released code, which need no weights.

They are compared with the part in tests/golden and, where it is there, with the complete set.
"""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from model.backbones.clip_images import ClipImages
from model.decoders.sam import SamSegmenter, SamSettings
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.tokenizer_files import load_tokenizer
from model.text.tokens import add_special_tokens
from tests.golden_cases import TOLERANCE, cases_of_part, close
from utils.common.label_values import IGNORE
from utils.evaluation.metrics import ConfusionMatrix, mask_scores, overlap


@pytest.fixture
def untrained_sam():
    """A SAM with the real image size; preprocessing has no weights, so everything else is small."""
    settings = SamSettings(image_size=1024, encoder_dim=16, encoder_depth=1, encoder_num_heads=1,
                           encoder_mlp_dim=16, encoder_global_blocks=(), prompt_embed_dim=32)  # fmt: skip
    return SamSegmenter(settings)


@pytest.mark.parametrize("path", cases_of_part("preprocess.npz"))
def test_preprocessing_equals_the_released_code(untrained_sam, path, llama_tokenizer_folder):
    numbers = np.load(path)
    processor = image_processor(path.parent, llama_tokenizer_folder)
    names = sorted(name.removesuffix("_raw") for name in numbers.files if name.endswith("_raw"))
    assert names
    seen = []
    untrained_sam.image_encoder = Recorder(seen)
    for name in names:
        image = numbers[f"{name}_raw"]
        resized = processor.sam_image(image)
        expected = numbers[f"{name}_sam_resized_s8"]
        assert np.array_equal(resized.transpose(1, 2, 0)[::8, ::8], expected), name
        images = processor.image_inputs([image])
        untrained_sam.encode(images.sam_images, images.resized_sizes)
        close(seen[-1][0, :, ::16, ::16], numbers[f"{name}_sam_preprocessed_s16"], f"SAM input of {name}")
        mean, std = (
            np.array(values).reshape(3, 1, 1)
            for values in (processor.images.clip.image_mean, processor.images.clip.image_std)
        )
        clip = processor.images.clip_image(image)
        close((clip / 255 - mean) / std, numbers[f"{name}_clip"], f"CLIP input of {name}")


def image_processor(folder, tokenizer_folder):
    """A processor with the CLIP settings of the reference; its tokenizer does not matter here."""
    tokenizer, format = load_tokenizer(tokenizer_folder), SequenceFormat.named("release")
    add_special_tokens(tokenizer, format)
    clip = CLIPImageProcessorPil.from_pretrained(folder / "checkpoints" / "clip-vit-tiny-patch14")
    return LasagnaProcessor(
        tokenizer=tokenizer,
        images=ClipImages(clip=clip, num_image_tokens=256),
        sam_image_size=1024,
        format=format,
    )


class Recorder(torch.nn.Module):
    """Stands in for SAM's image encoder and keeps what it is given."""

    def __init__(self, seen):
        super().__init__()
        self.seen, self.pos_embed = seen, torch.zeros(1)

    def forward(self, pixels):
        self.seen.append(pixels)
        return pixels


@pytest.mark.parametrize("path", cases_of_part("metrics.npz"))
def test_metrics_equal_the_released_code(path):
    numbers, facts = np.load(path), json.loads(path.with_suffix(".json").read_text())
    overlaps = []
    for name in (name for name in numbers.files if name.startswith("giou_gt")):
        predictions = numbers[name.replace("gt", "pred")] > 0
        overlaps += [overlap(p, g == 1, g == 255) for p, g in zip(predictions, numbers[name], strict=True)]
    scores = mask_scores(overlaps)
    close([scores["giou"], scores["ciou"]], facts["giou_ciou"], "gIoU, cIoU")


@pytest.mark.parametrize("path", cases_of_part("metrics.npz"))
def test_confusion_matrices_equal_the_released_code(path):
    numbers, facts = np.load(path), json.loads(path.with_suffix(".json").read_text())
    truth, prediction = numbers["conf5_gt"], numbers["conf5_pred"]
    # "ignore0" leaves out every pixel that is, or is called, class 0.
    nowhere = (truth == 0) | (prediction == 0)
    for name, labels in (("", truth), ("_ignore0", np.where(nowhere, IGNORE, truth))):
        matrix = ConfusionMatrix(len(numbers["conf5"]))
        for each in zip(labels, prediction, strict=True):
            matrix.add(*each)
        if not name:
            assert np.array_equal(matrix.counts[:-1, :-1], numbers["conf5"])
        expected = numbers[f"conf5_iou{name}"]
        assert np.allclose(matrix.iou(), expected, rtol=TOLERANCE, equal_nan=True)
        close(matrix.summary()["miou"], facts[f"conf5_miou{name}"], f"mIoU{name}")
