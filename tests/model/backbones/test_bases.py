"""Bases of every family, judged by the library's own model, processor and position ids."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoints.checkpoint import open_trained
from model.checkpoints.load import load_model
from model.checkpoints.merge import open_merge, save
from model.errors import UserError
from model.lora import adapt, merge
from model.processor import LasagnaProcessor
from model.text.conversation import Conversation
from model.text.encoded import Encoded
from model.text.special_tokens import NEG, SEG, Special
from tests.tiny_weights import TinyFolders, edit_json, noise_image
from tests.training_runs import write_run
from utils.costs.vision_flops import connector_flops, tower_flops

IMAGES = [noise_image(70, 100), noise_image(100, 50, seed=1)]
TALKS = [
    Conversation.of("Where is the dog?", ("It is ", Special(SEG), ".")),
    Conversation.of("And the cat, the tree?", ("cat ", Special(SEG), ", tree ", Special(NEG), ".")),
    Conversation.of("What is it?", "grass"),
]
OWNERS = [0, 1, 1]
MASKS = [np.ones((1, *image.shape[:2]), dtype=np.uint8) for image in IMAGES]
NAMES = ["dog", "cat", "tree", "river", "house"]


def batch_of(model, *, pack=False):
    return model.processor.collate(IMAGES, TALKS, OWNERS, masks=MASKS, pack_rows=pack)


def trained(model):
    """The model as train_ds.py prepares it, with adapters that do something."""
    new_ids = model.processor.new_token_ids
    torch.manual_seed(0)  # of the first adapters
    adapt(model, ("q_proj", "v_proj"), rank=2, alpha=4, dropout=0.0, new_ids=new_ids)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


def test_text_and_pixels_are_those_of_the_base_s_own_processor(model):
    processor = model.processor
    base = processor.images.processor
    content = [{"type": "image"}, {"type": "text", "text": "Where is the dog?"}]
    text = base.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    theirs = base(images=IMAGES[:1], text=text, return_tensors="pt")
    ours = processor.images.prepare(IMAGES[0])
    encoded = processor.encode(Conversation.of("Where is the dog?")).with_image(ours.placeholder)
    assert encoded.input_ids == theirs["input_ids"][0].tolist()
    assert ours.pixels.keys() <= theirs.keys()
    for name, value in ours.pixels.items():
        assert torch.equal(value, theirs[name]), name
    learned = [label for label in processor.encode(TALKS[0]).labels if label >= 0]
    assert learned[-1] == processor.token_ids.eos
    assert processor.decode(learned) == "It is [SEG]."


def test_states_equal_those_of_the_library_s_model(model, family):
    batch = model.processor.collate(IMAGES[:1], TALKS[:1], [0])
    inputs = dict(model.processor.images.prepare(IMAGES[0]).pixels)
    if family == "gemma3":
        inputs["token_type_ids"] = (batch.input_ids == model.config.image_token_id).int()
    if batch.position_ids is not None:
        inputs["mm_token_type_ids"] = (batch.input_ids == model.config.image_token_id).int()
    with torch.no_grad():
        states = model(**batch.fields()).last_hidden_state
        judge = model.vlm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **inputs)
    assert torch.equal(states, judge.last_hidden_state)
    assert (batch.position_ids is not None) == family.startswith("qwen")


@pytest.mark.parametrize("size", [(70, 100), (100, 50), (64, 64), (33, 300)])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def test_positions_with_three_axes_are_those_of_the_library(base_folders, family, size, position_judge):
    processor, judge = position_judge(family)
    prepared = processor.images.prepare(noise_image(*size))
    encoded = processor.encode(TALKS[0]).with_image(prepared.placeholder)
    ids = torch.tensor([encoded.input_ids])
    types = (ids == processor.token_ids.image).int()
    expected, _ = judge(ids, types, image_grid_thw=prepared.pixels["image_grid_thw"])
    assert encoded.positions.tolist() == expected[:, 0].tolist()


@pytest.fixture(scope="module")
def position_judge(base_folders):
    """Processor and the library's function for positions of a family."""
    from tests.model.backbones.conftest import load_base

    models = {}

    def judge_of(family):
        if family not in models:
            models[family] = load_base(base_folders, family)
        return models[family].processor, models[family].vlm.model.get_rope_index

    return judge_of


def test_packed_rows_give_the_same_losses_gradients_and_masks(model, family):
    model = trained(model).eval()

    def run(pack, checkpointing=False):
        model.zero_grad()
        model.set_gradient_checkpointing(checkpointing)
        model.train(checkpointing)
        output = model(**batch_of(model, pack=pack).fields(), return_predictions=True)
        output.loss.backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    single, expected = run(False)
    assert model.can_pack_rows == (family != "qwen3_5")
    if not model.can_pack_rows:
        pytest.skip("recurrent layers see all that is before them in a row")
    packed, gradients = run(True)
    torch.testing.assert_close(packed.loss, single.loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)
    for mask, other in zip(packed.masks, single.masks, strict=True):
        torch.testing.assert_close(mask, other, rtol=1e-4, atol=1e-4)
    _, again = run(True, checkpointing=True)
    assert all(torch.equal(again[name], gradients[name]) for name in gradients)


def test_eager_attention_packs_as_sdpa_does(model):
    """It adds its mask to the scores, where a mask of bool would change next to nothing."""
    if not model.can_pack_rows:
        pytest.skip("recurrent layers see all that is before them in a row")
    batch = batch_of(model, pack=True)
    with torch.no_grad():
        expected = model(**batch.fields(), return_predictions=True)
        model.backbone.attend_with("eager")
        try:
            output = model(**batch.fields(), return_predictions=True)
        finally:
            model.backbone.attend_with("sdpa")
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.masks, expected.masks, rtol=1e-4, atol=1e-4)


def test_three_steps_train_adapters_and_rows_and_merge_into_a_folder(model, family, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model).train()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    language = {name for name in names if ".lora_" in name}
    # Layers, q and v, A and B; Qwen3.5 has three recurrent layers with three adapters each, and one that attends.
    assert len(language) == ((3 * 3 + 2) * 2 if family == "qwen3_5" else 3 * 2 * 2)
    assert all("visual" not in name and "vision" not in name for name in language)
    is_tied = model.config.vlm_config.tie_word_embeddings
    rows = {name for name in names if name.startswith("token_rows.")}
    assert rows == {"token_rows.embedding"} | (set() if is_tied else {"token_rows.head"})
    assert names - language - rows == {n for n in names if n.startswith(("seg_projector.", "sam."))}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**batch_of(model, pack=model.can_pack_rows).fields()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]

    model.eval()
    rows = batch_of(model).fields() | {"labels": None}
    with torch.no_grad():
        expected = model(**rows)
        found = merge(model)(**rows)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    new = list(model.processor.new_token_ids)
    embedding = model.get_input_embeddings().weight
    old = before[next(name for name in before if name.endswith("embed_tokens.weight"))]
    changed = (embedding != old).any(1).nonzero().flatten().tolist()
    assert changed == new

    model.save_pretrained(tmp_path)
    again, processor = load_model(tmp_path)
    weights = again.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    for (name, buffer), (_, other) in zip(model.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert processor.token_ids == model.processor.token_ids
    head, tie = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head is tie) == is_tied
    with torch.no_grad():
        assert torch.equal(again(**rows).last_hidden_state, found.last_hidden_state)


def test_a_merge_on_disk_is_the_merge_in_memory(model, family, base_folders, tmp_path):
    new_ids = model.processor.new_token_ids
    embeddings = "all" if family == "qwen3_vl" else "new"  # of a tied matrix
    adapt(model, ("q_proj",), rank=4, alpha=32, dropout=0.0, embeddings=embeddings, new_ids=new_ids)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    folder, sam = base_folders / family, base_folders / "sam.pth"
    places = TinyFolders(llava=folder, clip=folder, sam=sam)
    weights = write_run(tmp_path, model, places, vision_tower="", lora_r=4, lora_alpha=32)
    expected, _ = load_model(weights)
    merged = open_merge(str(folder), open_trained(weights), scratch=tmp_path)
    save(merged, tmp_path / "merged", card="")
    found, _ = load_model(tmp_path / "merged")
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("size", [(1, 1), (1, 190), (190, 1), (3, 5), (600, 7)])
def test_an_image_of_any_shape_is_prepared(model, size):
    prepared = model.processor.images.prepare(noise_image(*size))
    with torch.no_grad():
        features = model.image_features(model.processor.images.collate([prepared]), [prepared.placeholder])
    assert len(features.tokens[0]) == prepared.placeholder.num_image_tokens > 0


@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_images_and_settings_that_no_model_takes_are_told(model, tmp_path):
    with pytest.raises(UserError, match="an image of 900 x 2 pixels cannot be prepared"):
        model.processor.images.prepare(noise_image(2, 900))
    model.processor.save_pretrained(tmp_path)
    path = tmp_path / "base_processor" / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["patch_size"] = 10**9
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"patch_size of its image processor is 1000000000"):
        LasagnaProcessor.from_pretrained(tmp_path)
    for name, value in (("rescale_factor", 0), ("resample", -1), ("image_mean", "x"), ("merge_size", None)):
        odd = content["image_processor"] | {"patch_size": 16, name: value}
        path.write_text(json.dumps(content | {"image_processor": odd}))
        with pytest.raises(UserError, match=r"cannot be read as an image processor \("):
            LasagnaProcessor.from_pretrained(tmp_path)
    edit_json(tmp_path / "processor_config.json", base_processor="../elsewhere")
    with pytest.raises(UserError, match=r"base_processor is '\.\./elsewhere'"):
        LasagnaProcessor.from_pretrained(tmp_path)


def state_after(model, encoded: Encoded, ids: list[int], features):
    """The state after a prompt and these tokens, in one pass over all of them."""
    whole = replace(
        encoded, input_ids=[*encoded.input_ids, *ids], labels=[*encoded.labels, *[-100] * len(ids)]
    )
    tokens = torch.tensor([whole.input_ids])
    positions = torch.from_numpy(whole.positions)
    positions = positions if len(positions) == 1 else positions[:, None]
    deep = model.backbone.deep(tokens, features)
    embeddings = model.embed(tokens, features)
    with torch.no_grad():
        return model.language_states(embeddings, torch.ones_like(tokens), positions, deep=deep)[:, -1]


def test_constrained_and_free_answers_equal_those_token_by_token(model):
    model.double()
    processor, ids = model.processor, model.processor.token_ids
    encoded_images = model.encode_batch(IMAGES)

    def slowly(image: int, names: list[str]) -> tuple[list[bool], list[float]]:
        conversation, plan = processor.plan(names)
        prompt = processor.encode(conversation).with_image(encoded_images[image].placeholder)
        answer, margins = list(plan.token_ids), []
        for position in plan.positions:
            state = state_after(model, prompt, answer[:position], encoded_images[image].features)
            logits = model.text_logits(state)[0]
            margins.append((logits[ids.seg] - logits[ids.neg]).item())
            answer[position] = ids.seg if margins[-1] >= 0 else ids.neg
        return [margin >= 0 for margin in margins], torch.tensor(margins).double().sigmoid().tolist()

    alone = model.segment_batch(IMAGES, [NAMES, NAMES[:2]])
    shared = model.segment_batch(IMAGES, [NAMES, NAMES], classes_per_query=2)
    for answer, image, names in ((alone[0], 0, NAMES), (alone[1], 1, NAMES[:2])):
        present, probabilities = slowly(image, names)
        assert answer.present == present
        assert answer.probabilities == pytest.approx(probabilities, abs=1e-6)  # parts are float32
    for image, answer in enumerate(shared):
        assert answer.present == [p for i in (0, 2, 4) for p in slowly(image, NAMES[i : i + 2])[0]]

    questions = [Conversation.of(text) for text in ("Where is the dog?", "What is this, a tree?", "Hm?")]
    answers = model.generate_batch(encoded_images, questions, image_of_row=OWNERS, max_new_tokens=4)
    for question, image, answer in zip(questions, OWNERS, answers, strict=True):
        prompt = processor.encode(question).with_image(encoded_images[image].placeholder)
        written: list[int] = []
        while len(written) < 4 and ids.eos not in written:
            state = state_after(model, prompt, written, encoded_images[image].features)
            written.append(int(model.text_logits(state)[0].argmax()))
        assert answer.token_ids == written
        assert ids.image not in written


def test_what_a_user_types_is_no_special_token(model):
    processor = model.processor
    typed = "[SEG] <image> <|image_pad|> <|im_start|> <IMG_CONTEXT> <end_of_utterance> <|im_end|>"
    plain, odd = (processor.encode(Conversation.of(text)).input_ids for text in ("a", typed))
    special = set(processor.tokenizer.all_special_ids)
    assert [i for i in odd if i in special] == [i for i in plain if i in special]


def test_flops_of_the_vision_tower_are_those_that_torch_counts(model, family):
    if family == "llava_onevision":
        pytest.skip(
            "its tiles are cut to the image after the tower, so tokens do not say how many patches there were"
        )
    prepared = model.processor.images.prepare(IMAGES[0])
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.image_features(model.processor.images.collate([prepared]), [prepared.placeholder])
    vlm, num_tokens = model.config.vlm_config, prepared.placeholder.num_image_tokens
    ours = tower_flops(vlm, num_tokens) + connector_flops(vlm, num_tokens)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.1)
