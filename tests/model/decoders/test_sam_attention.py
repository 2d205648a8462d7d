"""Fused attention of SAM's image encoder against segment_anything's own, which holds all scores at once."""

import copy
from functools import partial

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT, get_rel_pos
from torch._subclasses.fake_tensor import FakeTensorMode

from model.decoders import sam_attention
from model.decoders.sam import SamSegmenter, SamSettings, build_sam
from model.decoders.sam_attention import (
    FusedAttention,
    attend_folded,
    attend_in_pieces,
    attend_with_mask,
    fastest_way,
    relative_table,
)
from tests.fake_gpu import needs_fake_gpu
from tests.watching import Largest

HEADS, DIM = 3, 24


def settings(grid, window, heads=HEADS):
    return SamSettings(
        image_size=16 * grid,
        encoder_dim=8 * heads,
        encoder_depth=3,
        encoder_num_heads=heads,
        encoder_mlp_dim=32,
        encoder_global_blocks=(1,),
        encoder_window_size=window,
        prompt_embed_dim=16,
        decoder_mlp_dim=16,
        iou_head_dim=16,
    )


def randomize(module, std=0.2):
    """segment_anything starts its position tables at zero, which would hide a mistake in them."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module.eval()


def pair(grid, window, **sizes):
    """The encoder of segment_anything, untouched, and ours with the same weights."""
    reference = randomize(build_sam(settings(grid, window, **sizes)))
    assert type(reference.image_encoder) is ImageEncoderViT
    assert {type(block.attn) for block in reference.image_encoder.blocks} == {Attention}
    ours = SamSegmenter(settings(grid, window, **sizes)).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    assert {type(block.attn) for block in ours.image_encoder.blocks} == {FusedAttention}
    return reference.image_encoder, ours.image_encoder


def relative(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize(("grid", "window"), [(8, 4), (8, 3), (5, 7), (16, 14), (6, 0)])
def test_the_encoder_equals_segment_anything(grid, window, num_images):
    reference, ours = pair(grid, window)
    images = torch.randn(num_images, 3, 16 * grid, 16 * grid)
    with torch.no_grad():
        assert relative(ours(images), reference(images)) < 1e-5
        reference, ours, images = reference.double(), ours.double(), images.double()
        assert relative(ours(images), reference(images)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_segment_anything_is(dtype):
    reference, ours = pair(16, 14)
    images = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        exact = reference(images)
        theirs = reference.to(dtype)(images.to(dtype))
        result = ours.to(dtype)(images.to(dtype))
        assert result.dtype == dtype
        assert relative(result.float(), exact) < 1.5 * relative(theirs.float(), exact)


def attention(side=(5, 7), table=None, dtype=torch.float64):
    """An `Attention` of segment_anything for `side`, or with position tables made for `table`; and ours."""
    eager = Attention(DIM, num_heads=HEADS, use_rel_pos=True, input_size=table or side).to(dtype)
    randomize(eager, std=0.5)
    return eager, FusedAttention(copy.deepcopy(eager)), torch.randn(2, *side, DIM, dtype=dtype)


@pytest.mark.parametrize("attend", [attend_in_pieces, attend_with_mask, attend_folded])
@pytest.mark.parametrize("table", [None, (5, 5), (9, 12)], ids=["exact", "shorter", "longer"])
def test_every_way_equals_segment_anything_on_any_grid(attend, table):
    eager, ours, x = attention(table=table)
    with torch.no_grad():
        assert relative(ours(x, attend), eager(x)) < 1e-10


# Of 35 tokens in 5 rows of 7, six heads in all: several heads, one head, three rows, two, less than one.
@pytest.mark.parametrize("entries", [1 << 20, 4 * 35**2, 35**2, 3 * 7 * 35, 2 * 7 * 35, 1])
def test_pieces_of_any_size_give_the_same(entries, monkeypatch):
    eager, ours, x = attention()
    monkeypatch.setattr(sam_attention, "ENTRIES_PER_THREAD", entries)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad():
        assert relative(ours(x), eager(x)) < 1e-10


@pytest.mark.parametrize(("side", "length"), [(1, 1), (4, 7), (4, 5), (4, 27), (14, 27)])
def test_position_tables_equal_segment_anything(side, length):
    table = torch.randn(length, 6)
    torch.testing.assert_close(relative_table(table, side), get_rel_pos(side, side, table), rtol=0, atol=0)


def test_no_array_of_all_scores_exists(monkeypatch):
    eager, ours, x = attention(side=(16, 16))
    num_tokens, entries = 16**2, 2 * 16**3
    monkeypatch.setattr(sam_attention, "ENTRIES_PER_THREAD", entries // torch.get_num_threads())
    sizes = []
    with torch.no_grad():
        for way in (eager, ours, partial(ours, attend=attend_folded)):
            with Largest() as largest:
                way(x)
            sizes.append(largest.numel)
    scores, in_pieces, folded = sizes
    assert scores >= 2 * HEADS * num_tokens**2
    assert in_pieces <= max(entries, 2 * num_tokens * 3 * DIM)  # or q, k and v
    assert folded <= 2 * HEADS * num_tokens * (DIM // HEADS + 16 + 16)  # q and its bias


def test_a_learning_encoder_gets_the_gradients_of_segment_anything():
    reference, ours = (encoder.double() for encoder in pair(8, 3))
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    for encoder in (reference, ours):
        encoder(images).square().sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, expected[name].grad) < 1e-9, name


def test_a_copy_has_weights_of_its_own():
    _, ours, x = attention()
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        before = ours(x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(ours(x), before)
        assert not twin(x).any()


@needs_fake_gpu
@pytest.mark.parametrize(("dim", "heads"), [(1280, 16), (1024, 16), (768, 12)], ids=["h", "l", "b"])
def test_on_a_gpu_published_sizes_fit_flash_kernels(dim, heads, monkeypatch):
    side = 64  # of a global block
    asked = []

    def record(q, k, v, **keywords):
        asked.append((q.shape, k.shape, v.shape, {q.dtype, k.dtype, v.dtype}, set(keywords)))
        return torch.empty_like(v)

    with torch.device("meta"):
        eager = Attention(dim, num_heads=heads, use_rel_pos=True, input_size=(side, side))
    monkeypatch.setattr(sam_attention.F, "scaled_dot_product_attention", record)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        for module in eager.modules():
            for name, weight in module._parameters.items():
                fake = torch.empty(weight.shape, dtype=torch.bfloat16)
                module._parameters[name] = torch.nn.Parameter(fake)
        result = FusedAttention(eager)(torch.empty(2, side, side, dim, dtype=torch.bfloat16))
    assert result.device.type == "cuda"
    assert result.shape == (2, side, side, dim)
    [(q, k, v, dtypes, keywords)] = asked
    assert q == k == v
    assert q[:3] == (2, heads, side**2)
    assert q[3] <= 256
    assert q[3] % 8 == 0
    assert dtypes == {torch.bfloat16}
    assert keywords == {"scale"}  # and no mask


@pytest.mark.parametrize(
    ("device", "side", "learns", "way"),
    [
        ("cpu", 64, False, attend_in_pieces),
        ("cpu", 64, True, attend_folded),
        ("cuda", 14, False, attend_with_mask),
        ("cuda", 64, False, attend_folded),
    ],
)
def test_each_device_and_size_takes_its_fastest_way(device, side, learns, way):
    with FakeTensorMode():  # no GPU is needed for a tensor's device
        tokens = torch.empty(1, side, side, 1280, device=device)
    assert fastest_way(tokens, learns=learns) is way
