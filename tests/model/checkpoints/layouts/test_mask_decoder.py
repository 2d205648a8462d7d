"""Every file and folder that --vision_pretrained takes gives the same decoder as the weights it was written from."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamHQConfig, SamHQModel, SamModel

from model.checkpoints.layouts import sam2
from model.checkpoints.layouts.mask_decoder import read_mask_decoder
from model.decoders.build import build_decoder, decoder_settings
from model.decoders.sam import SamSegmenter
from model.decoders.sam2 import KINDS
from model.errors import UserError
from model.strict_loading import check_fit
from tests.model.checkpoints.layouts.mask_decoder_files import same_weights
from tests.tiny_weights import CONCEPT, SAM, SAM2, SAM3, concept_of, edit_json, random_decoder, random_sam3

# --------------------------------------------------------------------------------- Hugging Face folders


@pytest.fixture(params=[SAM2, SAM3], ids=lambda settings: settings.kind)
def hf_folder(request, tmp_path) -> tuple[Path, torch.nn.Module]:
    """A folder that the library wrote, and the decoder in it."""
    decoder = random_decoder(request.param)
    library = KINDS[request.param.kind].model(decoder.settings.config)
    library.load_state_dict(decoder.state_dict())
    library.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf", decoder


def test_a_folder_of_the_library_gives_the_same_decoder(hf_folder):
    folder, decoder = hf_folder
    same_weights(folder, decoder)


def test_dynamic_masks_and_other_pixels_of_a_folder(hf_folder):
    folder, decoder = hf_folder
    edit_json(folder / "config.json", mask_decoder_config={
        **json.loads((folder / "config.json").read_text())["mask_decoder_config"],
        "dynamic_multimask_via_stability": True,
    })  # fmt: skip
    same_weights(folder, decoder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}'
    )
    assert read_mask_decoder(folder)[0] == replace(
        decoder.settings, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(1, 1, 1)
    )


def test_the_video_models_of_both_are_read_without_their_memory(hf_folder):
    folder, decoder = hf_folder
    weights, config = (
        load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    if decoder.settings.kind == "sam2":
        config["model_type"] = "sam2_video"
        weights |= {"memory_attention.layer_norm.bias": torch.ones(1), "no_object_pointer": torch.ones(1)}
    else:
        # As in facebook/sam3: one backbone for detector and tracker, a neck for each.
        config = {"model_type": "sam3_video", "tracker_config": config | {"model_type": "sam3_tracker_video"}}
        weights = {
            re.sub(r"^tracker_model\.(detector_model|tracker_neck)\.", r"\1.", k): v
            for k, v in weights.items()
        }
        assert any(name.startswith("detector_model.vision_encoder.backbone.") for name in weights)
        weights |= {
            "detector_model.vision_encoder.neck.fpn_layers.0.proj1.bias": torch.ones(1),
            "detector_model.text_encoder.text_model.embeddings.token_embedding.weight": torch.ones(1, 1),
            "tracker_model.memory_encoder.projection.bias": torch.ones(1),
            "tracker_model.occlusion_spatial_embedding_parameter": torch.ones(1, 1),
        }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    same_weights(folder, decoder)


def test_absurd_sizes_in_a_folder_are_one_line(hf_folder):
    folder, decoder = hf_folder
    config = json.loads((folder / "config.json").read_text())
    layers = {"sam2": "blocks_per_stage", "sam3_tracker": "num_hidden_layers"}[decoder.settings.kind]
    config["vision_config"]["backbone_config"][layers] = [10**6] if "blocks" in layers else 10**6
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"{layers} is 1000000; it is a number from 0 to 1000"):
        read_mask_decoder(folder)


@pytest.mark.parametrize(("config_class", "model_class"), [(SamConfig, SamModel), (SamHQConfig, SamHQModel)])
def test_sam_and_sam_hq_in_hugging_face_s_layout_equal_segment_anything(config_class, model_class, tmp_path):
    torch.manual_seed(0)
    ours = SamSegmenter(SAM).eval()
    sizes = {"hidden_size": 32, "mlp_dim": 32, "iou_head_hidden_dim": 16}
    extra = {"vit_dim": 16} if model_class is SamHQModel else {}
    library = model_class(config_class(
        vision_config={"hidden_size": 16, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 64, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16,
                       "mlp_dim": 32},
        prompt_encoder_config={"hidden_size": 32, "image_size": 64}, mask_decoder_config={**sizes, **extra},
    )).eval()  # fmt: skip
    for parameter in library.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    library.save_pretrained(tmp_path / "hf")
    settings, weights = read_mask_decoder(tmp_path / "hf")
    assert settings == SAM
    check_fit(ours.state_dict(), weights, source="hf")
    ours.load_state_dict(weights)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SAM.pixel_mean, SAM.pixel_std))
    with torch.no_grad():
        levels = ours.encode(images, [(64, 64)] * 2)
        theirs = library.get_image_embeddings((images.float() - mean) / std)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(levels[0], theirs, rtol=1e-5, atol=1e-5)
        if model_class is SamModel:
            places, labels = torch.rand(2, 1, 1, 2) * 64, torch.ones(2, 1, 1, dtype=torch.int)
            sparse, _ = library.prompt_encoder(places, labels, None, None)
            expected = library(
                image_embeddings=levels[0], input_points=places, input_labels=labels, multimask_output=False
            ).pred_masks[:, 0, 0]
            masks = ours.decode(sparse[:, 0], levels, [0, 1])
            torch.testing.assert_close(masks, expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_sam_hq_is_its_sam(tmp_path):
    torch.manual_seed(0)
    decoder = SamSegmenter(SAM)
    weights = decoder.state_dict()
    added = ("hf_token.weight", "hf_mlp.layers.0.bias", "compress_vit_feat.0.weight", "embedding_encoder.1.bias",
             "embedding_maskfeature.3.weight")  # fmt: skip
    torch.save(
        {**weights, **{f"mask_decoder.{name}": torch.ones(2) for name in added}},
        tmp_path / "sam_hq_vit_b.pth",
    )
    same_weights(tmp_path / "sam_hq_vit_b.pth", decoder)


# ------------------------------------------------------------------------------------------- bad input


def test_what_is_no_mask_decoder_is_said(hf_folder, tmp_path):
    folder, _ = hf_folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"a folder without config\.json; pass the weight file inside it"
    ):
        read_mask_decoder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist; pass one of sam_vit"):
        read_mask_decoder(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"pass their folder, with config\.json"):
        read_mask_decoder(shutil.copy(renamed_file(folder), tmp_path / "alone.safetensors"))
    for kind, message in (
        ("sam3", "the settings of SAM 3's concept head do not agree"),
        ("edgetam", "known: sam, "),
    ):
        edit_json(folder / "config.json", model_type=kind)
        with pytest.raises(UserError, match=message):
            read_mask_decoder(folder)


def renamed_file(folder: Path) -> Path:
    """The folder's weight file with the names that the model has in memory."""
    weights = load_file(folder / "model.safetensors")
    names = {name: sam2.renamed_by(sam2.SAM3_RULES, name) for name in weights}
    save_file({names[name]: value for name, value in weights.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("prompt_encoder_config", "patch_size", 0),
        ("mask_decoder_config", "attention_downsample_rate", 0),
        ("mask_decoder_config", "mlp_dim", -1),
        ("prompt_encoder_config", "mask_input_channels", -1),
    ],
)
def test_sizes_of_which_no_decoder_can_be_built_are_one_line(section, name, value):
    sections = decoder_settings(SAM2.to_dict()).to_dict()
    sections[section][name] = value
    with pytest.raises(UserError, match="cannot be read as"):
        build_decoder(decoder_settings(sections))


# ------------------------------------------------------------------------------------ SAM 3's two heads


@pytest.fixture(scope="module")
def sam3_folders(tmp_path_factory) -> dict[str, Path]:
    """SAM 3's detector alone, as the library writes it, and with its tracker, as in facebook/sam3."""
    folder = tmp_path_factory.mktemp("sam3")
    detector, tracker = random_sam3(), random_decoder(SAM3)
    detector.save_pretrained(folder / "detector")
    config = json.loads((folder / "detector" / "config.json").read_text())
    of_detector = {f"detector_model.{name}": value for name, value in detector.state_dict().items()}
    of_tracker = {
        name.replace("vision_encoder.neck.", "tracker_neck."): value
        for name, value in tracker.state_dict().items()
        if not name.startswith("vision_encoder.backbone.")
    }
    of_tracker = {
        name if name.startswith("tracker_neck.") else f"tracker_model.{name}": value
        for name, value in of_tracker.items()
    }
    (folder / "both").mkdir()
    save_file(
        {k: v.contiguous() for k, v in (of_detector | of_tracker).items()}, folder / "both/model.safetensors"
    )
    tracker_config = KINDS["sam3_tracker"].model(SAM3.config).config.to_dict()
    both = {"model_type": "sam3_video", "detector_config": config, "tracker_config": tracker_config}
    (folder / "both" / "config.json").write_text(json.dumps(both, default=str))
    return {"detector": folder / "detector", "both": folder / "both"}


@pytest.mark.parametrize(("name", "head"), [("detector", None), ("detector", "concept"), ("both", "concept")])
def test_the_detector_of_sam_3_is_read_alone_or_beside_its_tracker(sam3_folders, name, head):
    settings, weights = read_mask_decoder(sam3_folders[name], head)
    expected = concept_of(random_sam3())
    assert settings == expected.settings == CONCEPT
    check_fit(expected.state_dict(), weights, source=name)
    assert all(torch.equal(value, weights[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize("head", [None, "sam"])
def test_the_tracker_is_taken_where_both_are_there(sam3_folders, head):
    settings, weights = read_mask_decoder(sam3_folders["both"], head)
    assert settings == SAM3
    check_fit(build_decoder(settings).state_dict(), weights, source="both")


def test_a_head_that_is_not_there_is_said(sam3_folders, hf_folder, tmp_path):
    with pytest.raises(
        UserError, match=r"--mask_head sam: .*detector has SAM 3's concept head; leave --mask_head"
    ):
        read_mask_decoder(sam3_folders["detector"], "sam")
    title = hf_folder[1].settings.title
    with pytest.raises(
        UserError, match=rf"--mask_head concept: .* has {title}; take a SAM 3 with its detector"
    ):
        read_mask_decoder(hf_folder[0], "concept")


def test_a_detector_of_the_wrong_size_is_one_line(sam3_folders, tmp_path):
    shutil.copytree(sam3_folders["detector"], tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["detr_decoder_config"]["hidden_size"] = 64
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"config\.json: the settings .* the width of the DETR decoder is 64"
    ) as error:
        read_mask_decoder(tmp_path / "copy")
    assert "\n" not in str(error.value)
