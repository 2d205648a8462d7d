"""SAM 2 files in their authors' names."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.layouts import sam2
from model.checkpoints.layouts.mask_decoder import is_mask_decoder_file, read_mask_decoder
from model.decoders.build import build_decoder
from model.errors import UserError
from model.strict_loading import check_fit
from tests.model.checkpoints.layouts.mask_decoder_files import published_names, same_weights

TINY = sam2.Hiera(dim=8, blocks=(1, 1, 2, 1), heads=1, windows=(4, 2, 4, 2), global_blocks=(3,))


@pytest.mark.parametrize("name", sam2.SIZES)
def test_files_of_every_published_size_are_recognised_and_fit(name):
    background = sam2.BACKGROUND.get(name, 7)
    with torch.device("meta"):
        shapes = published_names(sam2.SIZES[name], background)
        weights = {each: torch.empty(shape) for each, shape in shapes.items()}
        settings, renamed = sam2.read_original(weights)
        decoder = build_decoder(settings)
    assert settings == sam2.published(name)
    check_fit(decoder.state_dict(), renamed, source=name)
    widths = [block.dim_out for block in decoder.vision_encoder.backbone.blocks]
    assert widths[-1] == 8 * widths[0] == 8 * sam2.SIZES[name].dim


@pytest.fixture
def tiny_file(tmp_path, monkeypatch):
    """A file in the authors' names, of a size that is published for this test; and its decoder."""
    monkeypatch.setitem(sam2.SIZES, "tiniest", TINY)
    monkeypatch.setattr(sam2, "IMAGE_SIZE", 64)
    generator = torch.Generator().manual_seed(0)
    shapes = published_names(TINY, background=3, dim=32)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save({"model": weights}, tmp_path / "sam2_tiniest.pt")
    settings, renamed = sam2.read_original(weights)
    decoder = build_decoder(settings)
    decoder.load_state_dict(renamed)
    return tmp_path / "sam2_tiniest.pt", weights, decoder


def test_a_file_s_weights_come_to_their_places(tiny_file):
    path, weights, decoder = tiny_file
    same_weights(path, decoder)
    assert is_mask_decoder_file(path)
    masks = decoder.mask_decoder
    places = {
        "image_encoder.trunk.blocks.1.proj.bias": decoder.vision_encoder.backbone.blocks[1].proj.bias,
        "image_encoder.neck.convs.3.conv.weight": decoder.vision_encoder.neck.convs[3].weight,
        "sam_prompt_encoder.mask_downscaling.4.bias": decoder.prompt_encoder.mask_embed.layer_norm2.bias,
        "sam_mask_decoder.iou_prediction_head.layers.1.bias": masks.iou_prediction_head.layers[0].bias,
        "sam_mask_decoder.pred_obj_score_head.layers.2.bias": masks.pred_obj_score_head.proj_out.bias,
        "sam_mask_decoder.transformer.layers.1.norm4.weight": masks.transformer.layers[1].layer_norm4.weight,
        "no_mem_embed": decoder.no_memory_embedding,
    }  # fmt: skip
    for name, place in places.items():
        assert torch.equal(place, weights[name]), name
    for index in range(4):
        expected = weights[f"sam_prompt_encoder.point_embeddings.{index}.weight"][0]
        assert torch.equal(decoder.prompt_encoder.point_embed.weight[index], expected)


def test_what_fine_tuners_put_around_sam_2_is_taken_off(tiny_file):
    path, weights, decoder = tiny_file
    for content in (
        weights,
        {"state_dict": {f"sam2_model.{name}": value for name, value in weights.items()}},
    ):
        torch.save(content, path)
        same_weights(path, decoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("sam_mask_decoder.conv_s0.bias"), "missing"),
        (lambda w: w.update({"sam_mask_decoder.evil": torch.ones(1)}), "unexpected"),
        (lambda w: w.update({"no_mem_embed": torch.ones(1, 1, 7)}), "of another shape"),
    ],
)
def test_a_file_that_is_not_whole_is_a_table(tiny_file, change, message):
    _, weights, decoder = tiny_file
    change(weights)
    _, renamed = sam2.read_original(weights)
    with pytest.raises(UserError, match=message):
        check_fit(decoder.state_dict(), renamed, source="SAM 2")


@pytest.mark.parametrize(
    "change",
    [
        lambda w: [w.pop(name) for name in list(w) if "point_embeddings" in name],
        lambda w: w.update({"image_encoder.trunk.pos_embed": torch.ones(3)}),
        lambda w: w.update({f"image_encoder.trunk.blocks.{'9' * 5000}.proj.bias": torch.ones(1)}),
    ],
)
def test_a_file_whose_names_and_shapes_are_none_of_sam_2_is_one_line(tiny_file, change):
    path, weights, _ = tiny_file
    change(weights)
    torch.save({"model": weights}, path)
    with pytest.raises(UserError, match=r"--vision_pretrained .* cannot be read as a mask decoder \("):
        read_mask_decoder(path)


def test_a_size_that_nobody_published_is_said(tiny_file, monkeypatch):
    path, _, _ = tiny_file
    monkeypatch.delitem(sam2.SIZES, "tiniest")
    with pytest.raises(UserError, match=r"8 channels and \[1, 1, 2, 1\] blocks is none of tiny \(96, "):
        read_mask_decoder(path)
