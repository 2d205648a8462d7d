"""Our model against the numbers of the released LaSagnA / LISA code; see the README beside the numbers.

The complete set is in the folder that LASAGNA_GOLDEN names; every train_*.npz and generate_*.npz in it is a case.
What needs no weights (preprocessing, metrics) is compared with the part in tests/golden too.
"""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from merge_lora_weights_and_save_hf_model import main as merge_script
from model.checkpoints.layouts import training
from model.checkpoints.layouts.training import apply_training_weights
from model.checkpoints.load import load_model
from model.decoders.sam import SamSegmenter, SamSettings
from model.generation.greedy import greedy
from model.processor import LasagnaProcessor
from model.text.format import SequenceFormat
from model.text.tokens import add_special_tokens, load_tokenizer
from tests.golden_cases import (
    IMAGE_PLACEHOLDER,
    TOLERANCE,
    TrainCase,
    batch_of,
    cases,
    cases_of_part,
    close,
    expand,
    load,
    trained_once,
)
from utils.common.label_values import IGNORE
from utils.evaluation.metrics import ConfusionMatrix, mask_scores, overlap

TRAIN_CASES, GENERATE_CASES = cases("train_*.npz"), cases("generate_*.npz")
TRAINED_PARTS = ("embed_tokens", "lm_head", "sam.mask_decoder", "seg_projector")


@pytest.fixture(scope="module")
def shared_model(golden):
    """Read-only: shared by the tests of this module."""
    return load("lasagna-tiny")


@pytest.fixture
def model(shared_model):
    return copy.deepcopy(shared_model)


@pytest.fixture(scope="module")
def merged_model(golden, tmp_path_factory):
    """Base and training weights of the released code, through the merge script."""
    target = tmp_path_factory.mktemp("merged") / "model"
    files = golden / "checkpoints"
    arguments = [
        "--version",
        files / "llava-tiny-base",
        "--weight",
        files / "lora_weight" / "pytorch_model.bin",
    ]
    arguments += [
        "--vision_tower",
        files / "clip-vit-tiny-patch14",
        "--vision_pretrained",
        files / "sam_tiny.pth",
    ]
    arguments += ["--lora_alpha", "16", "--save_path", target, "--precision", "fp32"]
    assert merge_script([str(argument) for argument in arguments]) == 0
    return load_model(target)[0]


@pytest.mark.parametrize("path", TRAIN_CASES)
def test_what_the_model_computes_on_the_way_equals_the_released_code(shared_model, path):
    case, model, output, _ = trained_once(path, shared_model)
    batch, numbers = case.batch, case.numbers
    assert [list(size) for size in batch.resized_sizes] == case.facts["resize"]
    with torch.no_grad():
        features = model.image_features(batch.clip_images)
        close(features[batch.image_of_row][:, ::9], numbers["mm_proj_s"], "projected CLIP features")
        embeddings = model.sam.encode(batch.sam_images, batch.resized_sizes)
        close(embeddings[:, ::8, ::8, ::8], numbers["sam_emb_s"], "SAM embeddings")
        deciding = output.last_hidden_state[batch.seg_rows, batch.seg_columns - 1]
        close(model.seg_projector(deciding), numbers["text_fc_at_ins"], "projected [SEG] states")
    # The released code counts the image's features too, and pads on the right as we do.
    close(output.logits.detach()[:, ::7, ::13], numbers["logits_s"], "logits")


@pytest.mark.parametrize("path", TRAIN_CASES)
def test_masks_losses_and_gradients_equal_the_released_code(shared_model, path):
    case, model, output, gradients = trained_once(path, shared_model)
    for index, masks in enumerate(output.masks):
        close(masks.detach(), case.of_image("train_pred{}", index), f"masks of image {index}")
    theirs = case.facts["loss"]
    compare_losses(output, theirs)
    close(
        gradients["vlm.model.language_model.layers.0.self_attn.q_proj.weight"],
        case.numbers["grad_q0"],
        "q_proj",
    )
    close(gradients["seg_projector.0.weight"], case.numbers["grad_fc0"], "projection")
    assert case.facts["grad_norms"]
    for name, norm in case.facts["grad_norms"].items():
        gradient = gradients[our_name(name)]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            gradient = gradient[: model.config.image_token_id]
        close(gradient.norm(), norm, f"gradient norm of {name}")


def compare_losses(output, theirs):
    close(output.loss.detach(), theirs["loss"], "loss")
    close(output.losses.cross_entropy.detach(), theirs["ce_loss"], "cross-entropy")
    close(output.losses.mask_bce.detach(), theirs["mask_bce_loss"], "mask BCE")
    close(output.losses.dice.detach(), theirs["mask_dice_loss"], "dice")


def our_name(name):
    for old, new in (
        ("model.visual_model.", "sam."),
        ("model.text_hidden_fcs.0.", "seg_projector."),
        ("model.mm_projector.", "vlm.model.multi_modal_projector.linear_1."),
        ("model.", "vlm.model.language_model."),
        ("lm_head.", "vlm.lm_head."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


def infer(model, case, index):
    """Masks of one image in the inference path: no labels, its own rows only."""
    ids = case.numbers[f"infer{index}_input_ids"]
    pad = model.processor.token_ids.pad
    rows, _, mask = expand(ids, ids, ids != pad, model.processor)
    batch = batch_of(rows, mask, [case.images[index]], [0] * len(ids), model.processor)
    with torch.no_grad():
        return model(**batch.fields()).masks[0]


@pytest.mark.parametrize("path", TRAIN_CASES)
def test_masks_of_the_inference_path_equal_the_released_code(shared_model, path):
    case = TrainCase(path, shared_model.processor)
    compared = 0
    for index in range(len(case.images)):
        if f"infer{index}_input_ids" in case.numbers:
            masks = infer(shared_model, case, index)
            close(masks, case.of_image("infer{}_pred", index), f"inferred masks of image {index}")
            compared += 1
    assert compared


@pytest.mark.parametrize("path", TRAIN_CASES)
def test_four_optimizer_steps_equal_the_released_code(model, path, monkeypatch):
    case = TrainCase(path, model.processor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in TRAINED_PARTS))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = model.sam.encode(case.batch.sam_images, case.batch.resized_sizes)
    monkeypatch.setattr(model.sam, "encode", lambda *_: embeddings)  # frozen: the same in every step
    optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    for expected in case.facts["adamw_losses"]:
        optimizer.zero_grad()
        output = model(**case.batch.fields())
        output.loss.backward()
        optimizer.step()
        compare_losses(output, expected)


# ------------------------------------------------------------------------------------------ the merge


def test_the_merge_script_makes_the_weights_of_the_released_one(shared_model, merged_model):
    merged, num_rows = merged_model.state_dict(), shared_model.config.image_token_id
    assert merged_model.config.sequence_format == shared_model.config.sequence_format
    for name, expected in shared_model.state_dict().items():
        # The last row of the vocabulary, <image>, is not theirs.
        rows = slice(num_rows) if len(expected) == num_rows + 1 else slice(None)
        close(merged[name][rows], expected[rows], name)


@pytest.mark.parametrize("path", TRAIN_CASES)
def test_merged_and_adapter_masks_equal_the_released_code(golden, merged_model, path, monkeypatch):
    monkeypatch.setattr(training, "merge", lambda model: model)
    files = golden / "checkpoints"
    adapted = load("llava-tiny-base", sam=str(files / "sam_tiny.pth"), format="release")
    apply_training_weights(adapted, files / "lora_weight" / "pytorch_model.bin", lora_alpha=16)
    assert adapted.llava is not adapted.vlm
    for index in range(len(TrainCase(path, merged_model.processor).images)):
        case = TrainCase(path, merged_model.processor)
        if f"infer{index}_input_ids" in case.numbers:
            expected = case.of_image("infer{}_pred", index)
            close(infer(merged_model, case, index), expected, f"merged masks of image {index}")
            close(infer(adapted, case, index), expected, f"adapter masks of image {index}")


# ------------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("path", GENERATE_CASES)
def test_greedy_generation_equals_the_released_code(shared_model, path):
    model, processor, numbers = shared_model, shared_model.processor, np.load(path)
    length = json.loads(path.with_suffix(".json").read_text())["max_new_tokens"]
    ids = numbers["input_ids"]
    prompt, _, mask = expand(ids, ids, np.ones_like(ids), processor)
    images = processor.image_inputs([numbers["image0"]])
    seg = processor.token_ids.seg
    with torch.no_grad():
        encoded = model.encode_images(**images.fields())
        embeddings = model.embed(prompt, encoded.features)
        [tokens], [states] = greedy(model, embeddings, mask, processor.token_ids.eos, length)
        assert tokens == numbers["output_ids"][0, ids.shape[1] :].tolist()
        # The reference includes masks of the prompt's [SEG] tokens, each from the state before it.
        asked = model.language_states(embeddings, mask)[0]
        in_prompt = [i - 1 for i, token in enumerate(prompt[0].tolist()) if token == seg]
        chosen = torch.cat([asked[in_prompt], states[[i for i, token in enumerate(tokens) if token == seg]]])
        [masks] = model.decode_masks([chosen], encoded, [0])
    close(masks, numbers["mask0"], "masks of every <ins>")


# ------------------------------------------------------------------- tokens, preprocessing, metrics


@pytest.mark.parametrize("path", cases("tokenization.json"))
def test_token_ids_equal_the_released_code(shared_model, merged_model, path):
    for each in (shared_model, merged_model):
        for case in json.loads(path.read_text()):
            ids = []
            for part in case["prompt"].split("<image>"):
                ids += [IMAGE_PLACEHOLDER] if ids else [each.processor.tokenizer.bos_token_id]
                ids += each.processor.tokenizer(part, add_special_tokens=False).input_ids
            assert ids == case["ids"], case["prompt"]


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
            for values in (processor.clip.image_mean, processor.clip.image_std)
        )
        clip = processor.clip_image(image)
        close((clip / 255 - mean) / std, numbers[f"{name}_clip"], f"CLIP input of {name}")


def image_processor(folder, tokenizer_folder):
    """A processor with the CLIP settings of the reference; its tokenizer does not matter here."""
    tokenizer, format = load_tokenizer(tokenizer_folder), SequenceFormat.named("release")
    add_special_tokens(tokenizer, format)
    clip = CLIPImageProcessorPil.from_pretrained(folder / "checkpoints" / "clip-vit-tiny-patch14")
    return LasagnaProcessor(
        tokenizer=tokenizer, clip=clip, sam_image_size=1024, num_image_tokens=256, format=format
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
