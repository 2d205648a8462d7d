"""Our model against the numbers of the released LaSagnA / LISA code; see the README beside the numbers.

The complete set is in the folder that LASAGNA_GOLDEN names; every train_*.npz and generate_*.npz in it is a case.
What needs no weights is in tests/test_golden_part.py.
"""

import copy
import json

import numpy as np
import pytest
import torch

from merge_lora_weights_and_save_hf_model import main as merge_script
from model.checkpoints import trained
from model.checkpoints.checkpoint import open_trained
from model.checkpoints.load import load_model
from model.generation.greedy import greedy
from tests.golden_cases import (
    IMAGE_PLACEHOLDER,
    TrainCase,
    batch_of,
    cases,
    close,
    expand,
    load,
    trained_once,
)

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
        features = torch.stack(model.image_features(batch.vlm_images).tokens)
        close(features[list(batch.image_of_row)][:, ::9], numbers["mm_proj_s"], "projected CLIP features")
        [embeddings] = model.sam.encode(batch.sam_images, batch.resized_sizes)
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
    monkeypatch.setattr(trained, "merge", lambda model: model)
    files = golden / "checkpoints"
    adapted = load("llava-tiny-base", sam=str(files / "sam_tiny.pth"), format="release")
    trained.apply_trained(adapted, open_trained(files / "lora_weight" / "pytorch_model.bin"), lora_alpha=16)
    assert adapted.base_vlm is not adapted.vlm
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


# ------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize("path", cases("tokenization.json"))
def test_token_ids_equal_the_released_code(shared_model, merged_model, path):
    for each in (shared_model, merged_model):
        for case in json.loads(path.read_text()):
            ids = []
            for part in case["prompt"].split("<image>"):
                ids += [IMAGE_PLACEHOLDER] if ids else [each.processor.tokenizer.bos_token_id]
                ids += each.processor.tokenizer(part, add_special_tokens=False).input_ids
            assert ids == case["ids"], case["prompt"]
