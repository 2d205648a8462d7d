import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

from model.decoders.base import MaskPrompts
from model.decoders.sam import SamSegmenter, SamSettings, build_sam, sam_settings_from_state_dict

NARROW = SamSettings(
    image_size=256,
    encoder_dim=32,
    encoder_depth=2,
    encoder_num_heads=2,
    encoder_mlp_dim=64,
    encoder_global_blocks=(1,),
    prompt_embed_dim=128,
    decoder_mlp_dim=64,
    iou_head_dim=32,
)
SIZES = [(60, 100), (90, 50)]


@pytest.fixture
def sam():
    torch.manual_seed(0)
    reference = build_sam(NARROW)
    # segment_anything starts its position tables at zero, which would hide a mistake in them.
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    ours = SamSegmenter(NARROW)
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference.eval(), ours.eval()


def batch():
    transform = ResizeLongestSide(NARROW.image_size)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    resized = [torch.from_numpy(transform.apply_image(image).copy()).permute(2, 0, 1) for image in images]
    padded = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
    for row, image in zip(padded, resized, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return resized, padded[..., :256, :256], [tuple(image.shape[1:]) for image in resized]


def test_settings_are_read_from_the_weights():
    assert sam_settings_from_state_dict(build_sam(NARROW).state_dict()) == NARROW


@pytest.mark.parametrize(("name", "dim"), [("vit_h", 1280), ("vit_l", 1024), ("vit_b", 768)])
def test_published_sizes_are_recognised(name, dim):
    with torch.device("meta"):
        published = sam_model_registry[name]()
    settings = sam_settings_from_state_dict(published.state_dict())
    assert settings.encoder_dim == dim
    with torch.device("meta"):
        rebuilt = build_sam(settings)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in published.state_dict().items()
    }
    assert [block.window_size for block in rebuilt.image_encoder.blocks] == [
        block.window_size for block in published.image_encoder.blocks
    ]
    assert rebuilt.mask_decoder.transformer.num_heads == published.mask_decoder.transformer.num_heads
    if name == "vit_h":
        assert settings == SamSettings()


def test_a_file_that_is_no_sam_is_refused():
    with pytest.raises(ValueError, match="not a SAM checkpoint"):
        sam_settings_from_state_dict({"weight": torch.zeros(1)})


def test_encoding_equals_segment_anything(sam):
    reference, ours = sam
    resized, padded, sizes = batch()
    with torch.no_grad():
        expected = torch.cat(
            [reference.image_encoder(reference.preprocess(image.unsqueeze(0))) for image in resized]
        )
    [embeddings] = ours.encode(padded, sizes)
    assert embeddings.shape[1:] == NARROW.embedding_shapes[0]
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)


def test_masks_of_several_images_in_one_call_equal_segment_anything(sam):
    reference, ours = sam
    _, padded, sizes = batch()
    owners = [0, 1, 1, 0, 1]
    prompts = torch.randn(len(owners), 1, NARROW.prompt_embed_dim)
    with torch.no_grad():
        [embeddings] = ours.encode(padded, sizes)
        low_res = ours.decode(prompts, (embeddings,), owners)
        dense = reference.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(-1, -1, 16, 16)
        for index, owner in enumerate(owners):
            expected, _ = reference.mask_decoder(
                embeddings[owner : owner + 1],
                reference.prompt_encoder.get_dense_pe(),
                prompts[index].view(1, 1, -1),
                dense,
                multimask_output=False,
            )
            torch.testing.assert_close(low_res[index], expected[0, 0], rtol=1e-5, atol=1e-5)
            expected = reference.postprocess_masks(expected, sizes[owner], SIZES[owner])
            actual = ours.resize_masks(low_res[index : index + 1], sizes[owner], SIZES[owner])
            torch.testing.assert_close(actual, expected[0], rtol=1e-5, atol=1e-5)


def test_several_prompt_tokens_and_a_mask_prompt_equal_segment_anything(sam):
    reference, ours = sam
    _, padded, sizes = batch()
    owners, prompts = [1, 0, 1], torch.randn(3, 2, NARROW.prompt_embed_dim)
    dense = torch.randn(3, 1, NARROW.mask_side, NARROW.mask_side)
    with torch.no_grad():
        [embeddings] = ours.encode(padded, sizes)
        low_res = ours.decode(prompts, (embeddings,), owners, MaskPrompts(logits=dense, gates=torch.ones(3)))
        for index, owner in enumerate(owners):
            _, mask_prompt = reference.prompt_encoder(None, None, dense[index : index + 1])
            expected, _ = reference.mask_decoder(
                embeddings[owner : owner + 1],
                reference.prompt_encoder.get_dense_pe(),
                prompts[index : index + 1],
                mask_prompt,
                multimask_output=False,
            )
            torch.testing.assert_close(low_res[index], expected[0, 0], rtol=1e-5, atol=1e-5)


def test_many_masks_are_decoded_in_chunks_with_the_same_result(sam, monkeypatch):
    _, ours = sam
    _, padded, sizes = batch()
    prompts, owners = torch.randn(5, 1, NARROW.prompt_embed_dim), [0, 0, 1, 1, 1]
    with torch.no_grad():
        embeddings = ours.encode(padded, sizes)
        whole = ours.decode(prompts, embeddings, owners)
        monkeypatch.setattr("model.decoders.base.MASKS_PER_CALL", 2)
        torch.testing.assert_close(ours.decode(prompts, embeddings, owners), whole, rtol=1e-5, atol=1e-6)


def test_training_calls_the_mask_decoder_once_however_many_masks_there_are(sam, monkeypatch):
    """Under ZeRO-3 a process that called it more often than another would wait for it for ever."""
    _, ours = sam
    _, padded, sizes = batch()
    calls = []
    hook = ours.mask_decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("model.decoders.base.MASKS_PER_CALL", 2)
    ours.decode(torch.randn(5, 1, NARROW.prompt_embed_dim), ours.encode(padded, sizes), [0, 0, 1, 1, 1])
    hook.remove()
    assert len(calls) == 1


def test_bfloat16_gives_float32_masks_close_to_float32(sam):
    _, ours = sam
    _, padded, sizes = batch()
    prompts = torch.randn(2, 1, NARROW.prompt_embed_dim)
    with torch.no_grad():
        exact = ours.decode(prompts, ours.encode(padded, sizes), [0, 1])
        ours.to(torch.bfloat16)
        rounded = ours.decode(prompts, ours.encode(padded, sizes), [0, 1])
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
