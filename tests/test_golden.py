"""Our model against the numbers of the released LaSagnA / LISA code; see the README beside the numbers.

The files are found through LASAGNA_GOLDEN, a folder with train_a.npz, generate_e1.npz and checkpoints/.
"""

import json

import numpy as np
import pytest
import torch

from model.interop.training import apply_training_weights
from model.loading import load_model

TOLERANCE = 1e-4
IMAGE_PLACEHOLDER = -200


def close(actual, expected, name):
    actual, expected = torch.as_tensor(actual).float(), torch.as_tensor(expected).float()
    assert actual.shape == expected.shape, name
    worst = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert worst < TOLERANCE, f"{name} is off by {worst:.1e} of its largest value"


def load(golden, name, **kwargs):
    folder = golden / "checkpoints"
    tower = str(folder / "clip-vit-tiny-patch14")
    return load_model(folder / name, vision_tower=tower, dtype=torch.float32, **kwargs)


@pytest.fixture
def loaded(golden):
    return load(golden, "lasagna-tiny")


@pytest.fixture
def reference(golden):
    return np.load(golden / "train_a.npz"), json.loads((golden / "train_a.json").read_text())


def expand(ids, labels, processor):
    """Rows with one placeholder -> rows with one token for each image feature, labels likewise."""
    rows, row_labels, masks = [], [], []
    image = [processor.token_ids.image] * processor.num_image_tokens
    for row, label in zip(ids, labels, strict=True):
        at = int(np.flatnonzero(row == IMAGE_PLACEHOLDER)[0])
        rows.append([*row[:at], *image, *row[at + 1 :]])
        row_labels.append([*label[:at], *[-100] * len(image), *label[at + 1 :]])
        masks.append([int(token != processor.token_ids.pad) for token in rows[-1]])
    return torch.tensor(rows), torch.tensor(row_labels), torch.tensor(masks)


def batch_of(numbers, processor):
    images = [numbers["image0"], numbers["image1"]]
    input_ids, labels, mask = expand(numbers["input_ids"], numbers["labels"], processor)
    owners = [image for image in (0, 1) for _ in range(*numbers["offset"][image : image + 2])]
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": labels,
        "image_of_row": torch.tensor(owners),
        "gt_masks": [torch.from_numpy(numbers["gt0"]), torch.from_numpy(numbers["gt1"])],
        **processor._pad_images(images, fast_resize=False),
        **processor._find_segs(input_ids, owners),
    }


def test_forward_losses_and_gradients_equal_the_released_code(loaded, reference):
    model, processor = loaded
    numbers, facts = reference
    batch = batch_of(numbers, processor)
    assert [list(size) for size in batch["resized_sizes"]] == facts["resize"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and "image_encoder" not in name)
    output = model(**batch)
    output.loss.backward()

    features = model.image_features(batch["clip_images"])
    close(features[batch["image_of_row"]][:, ::9], numbers["mm_proj_s"], "projected CLIP features")
    embeddings = model.sam.encode(batch["sam_images"], batch["resized_sizes"])
    close(embeddings[:, ::8, ::8, ::8], numbers["sam_emb_s"], "SAM embeddings")
    deciding = output.last_hidden_state[batch["seg_rows"], batch["seg_columns"] - 1]
    close(model.seg_projector(deciding), numbers["text_fc_at_ins"], "projected [SEG] states")
    for index in range(2):
        close(output.masks[index], numbers[f"train_pred{index}"], f"masks of image {index}")

    ours, theirs = output.losses, facts["loss"]
    close(output.loss, theirs["loss"], "loss")
    close(ours.cross_entropy, theirs["ce_loss"], "cross-entropy")
    close(ours.mask_bce, theirs["mask_bce_loss"], "mask BCE")
    close(ours.dice, theirs["mask_dice_loss"], "dice")

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    first = "vlm.model.language_model.layers.0.self_attn.q_proj.weight"
    close(gradients[first], numbers["grad_q0"], "gradient of q_proj")
    close(gradients["seg_projector.0.weight"], numbers["grad_fc0"], "gradient of the projection")
    for name, norm in facts["grad_norms"].items():
        ours = gradients[our_name(name)]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            ours = ours[: model.config.image_token_id]
        close(ours.norm(), norm, f"gradient norm of {name}")


def test_logits_equal_the_released_code(loaded, reference):
    model, processor = loaded
    numbers, _ = reference
    batch = batch_of(numbers, processor)
    batch["labels"] = None
    with torch.no_grad():
        logits = model(**batch).logits
    # The released code counts the image's 256 features too, and pads on the right as we do.
    close(logits[:, ::7, ::13], numbers["logits_s"], "logits")


def test_four_optimizer_steps_equal_the_released_code(loaded, reference):
    model, processor = loaded
    numbers, facts = reference
    batch = batch_of(numbers, processor)
    parts = ("embed_tokens", "lm_head", "sam.mask_decoder", "seg_projector")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    for expected in facts["adamw_losses"]:
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        close(output.loss, expected["loss"], "loss")
        close(output.losses.mask_bce, expected["mask_bce_loss"], "mask BCE")


def test_their_training_weights_merge_to_their_merged_model(golden, loaded):
    sam = str(golden / "checkpoints" / "sam_tiny.pth")
    model, _ = load(golden, "llava-tiny-base", vision_pretrained=sam, format="release")
    weights = golden / "checkpoints" / "lora_weight" / "pytorch_model.bin"
    merged = apply_training_weights(model, weights, lora_alpha=16).state_dict()
    for name, expected in loaded[0].state_dict().items():
        num_rows = model.config.image_token_id if len(expected) > model.config.image_token_id else None
        close(merged[name][:num_rows], expected[:num_rows], name)


def our_name(name):
    replacements = (
        ("model.visual_model.", "sam."),
        ("model.text_hidden_fcs.0.", "seg_projector."),
        ("model.mm_projector.", "vlm.model.multi_modal_projector.linear_1."),
        ("model.", "vlm.model.language_model."),
        ("lm_head.", "vlm.lm_head."),
    )
    for old, new in replacements:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


def test_greedy_generation_equals_the_released_code(golden, loaded):
    model, processor = loaded
    numbers = np.load(golden / "generate_e1.npz")
    length = json.loads((golden / "generate_e1.json").read_text())["max_new_tokens"]
    prompt, _, mask = expand(numbers["input_ids"], np.zeros_like(numbers["input_ids"]), processor)
    images = processor._pad_images([numbers["image0"]], fast_resize=False)
    with torch.no_grad():
        encoded = model.encode_images(**images)
        embeddings = model.embed(prompt, encoded.features)
        [tokens], [states] = model._greedy(embeddings, mask, processor.token_ids.eos, length)
        expected = numbers["output_ids"][0, numbers["input_ids"].shape[1] :].tolist()
        assert tokens == expected
        chosen = states[[i for i, token in enumerate(tokens) if token == processor.token_ids.seg]]
        [masks] = model.decode_masks([chosen], encoded, [0])
    close(masks, numbers["mask0"][-len(masks) :], "masks of generated <ins>")
