"""A whole model around each other mask decoder: training, answers, folders, caches and merging work as with SAM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from merge_lora_weights_and_save_hf_model import main as merge
from model.checkpoints.layouts.write_released import write_released
from model.checkpoints.load import load_model
from model.checkpoints.quantize import KEPT
from model.decoders.sam2 import KINDS
from model.errors import UserError
from model.lora import add_lora, mark_trainable, trainable_pattern
from model.lora import merge as merge_adapters
from tests.model.test_lasagna import IMAGES, PLAIN, mixed_batch
from tests.tiny_weights import CONCEPT, SAM2, SAM3, edit_json, random_decoder, random_sam3
from tests.training_runs import trained_model, write_run
from utils.data.sam_keys import image_key
from utils.data.types import Batch
from utils.training.compile import compiled_blocks
from utils.training.sam_cache import SamCache

CLASSES = ["dog", "tree", "sky"]


@pytest.fixture(scope="module", params=[SAM2, SAM3, CONCEPT], ids=lambda settings: settings.kind)
def folders(request, tiny_folders, tmp_path_factory):
    """The tiny folders with another mask decoder, in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp(request.param.kind)
    if request.param is CONCEPT:
        library = random_sam3()
    else:
        library = KINDS[request.param.kind].model(request.param.config)
        library.load_state_dict(random_decoder(request.param).state_dict())
    library.save_pretrained(folder)
    return replace(tiny_folders, sam=folder)


@pytest.fixture(scope="module")
def shared(folders):
    model, _ = load_model(folders.llava, dtype=torch.float32, **folders.parts)
    return model


@pytest.fixture
def model(folders):
    return load_model(folders.llava, dtype=torch.float32, **folders.parts)[0]


def test_three_steps_train_exactly_what_the_decoder_names(model):
    model.vlm = add_lora(model.vlm, rank=2)
    names = set(mark_trainable(model))
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**mixed_batch(model).fields()).loss
        loss.backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == names
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # The masks of the other outputs are computed and not used.
    unused = {name for name in names if "output_hypernetworks_mlps" in name and "mlps.0." not in name}
    assert changed == names - unused
    assert all(trainable_pattern(model).fullmatch(name) for name in names)


def test_a_batch_without_seg_reaches_the_same_weights(model):
    names = set(mark_trainable(model))
    empty = [np.zeros((0, *IMAGES[0].shape[:2]), np.uint8)]
    batch = model.processor.collate(IMAGES[:1], [PLAIN], [0], masks=empty)
    model(**batch.fields()).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == names


def test_answers_about_several_images_equal_those_one_by_one(shared):
    together = shared.segment_batch(IMAGES, [CLASSES] * len(IMAGES))
    for image, answer in zip(IMAGES, together, strict=True):
        alone = shared.segment(shared.encode(image), CLASSES)
        assert alone.present == answer.present
        torch.testing.assert_close(alone.masks, answer.masks, rtol=1e-4, atol=1e-4)
        assert answer.masks.shape[1:] == image.shape[:2]
    assert shared.chat(IMAGES[0], "Where is the dog?").masks.shape[1:] == IMAGES[0].shape[:2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_loaded_bit_for_bit(shared, folders, tmp_path, dtype):
    model, _ = load_model(folders.llava, dtype=dtype, **folders.parts)
    model.save_pretrained(tmp_path)
    loaded, processor = load_model(tmp_path)
    assert processor.sam_resize == "square"
    assert loaded.config.sam_settings == model.config.sam_settings
    state, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == state.keys()
    assert all(
        value.dtype == state[name].dtype and torch.equal(value, state[name]) for name, value in found.items()
    )
    buffers = dict(model.named_buffers())
    for name, value in loaded.named_buffers():
        assert value.dtype == buffers[name].dtype, name
        assert torch.equal(value, buffers[name]), name
    batch = mixed_batch(model).fields()
    with torch.no_grad():
        expected, output = model(**batch, return_predictions=True), loaded(**batch, return_predictions=True)
    assert all(torch.equal(a, b) for a, b in zip(output.masks, expected.masks, strict=True))


def test_cached_levels_give_the_same_losses_to_the_last_bit(model, tmp_path):
    mark_trainable(model)
    inputs = mixed_batch(model)
    keys = tuple(image_key(image, model.processor.sam_transform) for image in IMAGES)
    cache = SamCache.of(model.sam, tmp_path)
    names = ("a",) * len(IMAGES)
    batch = Batch(inputs=inputs, sources=names, datasets=names, skipped=(), sam_keys=keys, sam_missing=(0, 1))
    fresh = cache.complete(batch, model.sam).inputs
    known = tuple(map(torch.stack, zip(*(cache.load(key) for key in keys), strict=True)))
    cached = replace(inputs, sam_images=None, sam_embeddings=known)
    losses = [model(**each.fields()).loss for each in (inputs, fresh, cached)]
    assert losses[0] == losses[1] == losses[2]


def test_a_run_merges_into_a_folder_that_needs_no_other_file(folders, tmp_path):
    trained = trained_model(folders)
    weights = write_run(tmp_path / "run", trained, folders)
    target = tmp_path / "merged"
    assert merge(["--weight", str(weights), "--save_path", str(target), "--precision", "fp32"]) == 0
    merged, _ = load_model(target)
    expected = merge_adapters(trained).eval()
    batch = mixed_batch(merged).fields()
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).masks, expected(**batch).masks, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"the released layout holds a SAM; this model has SAM [23]"):
        write_released(merged, tmp_path / "released")


def test_a_folder_whose_processor_is_of_another_decoder_is_refused(shared, tmp_path):
    shared.save_pretrained(tmp_path)
    edit_json(tmp_path / "processor_config.json", sam_resize="longest_side")
    with pytest.raises(
        UserError, match=r"sam_resize of processor_config\.json is longest_side, but that of the mask"
    ):
        load_model(tmp_path)
    edit_json(tmp_path / "processor_config.json", sam_resize="round")
    with pytest.raises(UserError, match="unknown sam_resize 'round'; known: longest_side, square"):
        load_model(tmp_path)


def test_only_the_language_model_s_layers_would_be_quantised(shared):
    layers = [name for name, module in shared.named_modules() if isinstance(module, torch.nn.Linear)]
    converted = {name for name in layers if should_convert_module(name, KEPT)}
    assert converted == {name for name in layers if "language_model.layers" in name}


def test_the_blocks_of_its_encoder_are_compiled(shared):
    blocks = [*shared.sam.encoder_blocks, shared.sam.mask_decoder]
    assert compiled_blocks(shared)[-len(blocks) :] == blocks
    assert len(blocks) == {"sam2": 5, "sam3_tracker": 3, "sam3": 3}[shared.sam.settings.kind] + 1
