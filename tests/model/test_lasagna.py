from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.lora import add_lora, mark_trainable
from model.text.conversation import Conversation
from model.text.format import SequenceFormat
from model.text.special_tokens import SEG, Special
from tests.tiny_weights import noise_image
from utils.evaluation.predict import predict_batch
from utils.evaluation.prompting import EvaluationSettings, ask_for_masks, ask_for_text, ask_freely

IMAGES = [noise_image(40, 60, seed=1), noise_image(50, 30, seed=2)]


def referring(*words):
    """ "Where is WORD?" with one [SEG], for each word a turn."""
    turns = [text for word in words for text in (f"Where is the {word}?", ("It is ", Special(SEG), "."))]
    return Conversation.of(*turns)


PLAIN = Conversation.of("What is it?", "A house and a river.")
# Two images, rows of both mixed; the second row of image 0 has two [SEG].
ROWS = [referring("dog"), referring("tree"), referring("cat", "sky"), PLAIN]
OWNERS = [1, 0, 0, 1]


def masks_for(counts):
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 2, (count, *image.shape[:2]), dtype=np.uint8)
        for count, image in zip(counts, IMAGES, strict=True)
    ]


def mixed_batch(model):
    return model.processor.collate(IMAGES, ROWS, OWNERS, masks=masks_for([3, 1]))


def test_every_seg_gets_a_mask_of_its_image_s_size(tiny_model):
    output = tiny_model(**mixed_batch(tiny_model).fields(), return_predictions=True)
    assert [tuple(masks.shape) for masks in output.masks] == [(3, 40, 60), (1, 50, 30)]
    assert all(masks.dtype == torch.float32 for masks in output.masks)
    assert output.loss.isfinite()


def test_a_batch_gives_what_each_conversation_gives_alone(tiny_model):
    with torch.no_grad():
        together = tiny_model(**mixed_batch(tiny_model).fields(), return_predictions=True).masks
        alone = [
            tiny_model(**tiny_model.processor.collate([IMAGES[owner]], [row], [0]).fields()).masks[0]
            for row, owner in zip(ROWS, OWNERS, strict=True)
        ]
    torch.testing.assert_close(together[0], torch.cat([alone[1], alone[2]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1], torch.cat([alone[0], alone[3]]), rtol=1e-4, atol=1e-5)


def test_a_mask_comes_from_the_state_before_its_seg(tiny_model):
    batch = tiny_model.processor.collate(IMAGES[:1], [referring("dog")], [0])
    at = int(batch.seg_columns[0])
    changed = replace(batch, input_ids=batch.input_ids.clone())
    changed.input_ids[0, at] = 5
    with torch.no_grad():
        [expected] = tiny_model(**batch.fields()).masks
        [same] = tiny_model(**changed.fields()).masks
        changed.input_ids[0, at - 1] = 5
        [other] = tiny_model(**changed.fields()).masks
    torch.testing.assert_close(same, expected)
    assert not torch.allclose(other, expected)


def test_image_token_has_no_logit(tiny_model):
    output = tiny_model(**mixed_batch(tiny_model).fields(), return_predictions=True)
    image = tiny_model.processor.token_ids.image
    assert image == tiny_model.config.image_token_id == len(tiny_model.get_input_embeddings().weight) - 1
    assert output.logits.shape[-1] == image


def test_image_features_stand_where_the_image_tokens_are(tiny_model):
    batch = mixed_batch(tiny_model)
    with torch.no_grad():
        features = tiny_model.image_features(batch.vlm_images)
        embeddings = tiny_model.embed(batch.input_ids, features.select(batch.image_of_row))
    is_image = batch.input_ids == tiny_model.config.image_token_id
    for row, owner in enumerate(OWNERS):
        torch.testing.assert_close(embeddings[row][is_image[row]], features.tokens[owner])


def test_a_batch_without_seg_still_gives_every_trained_weight_a_gradient(tiny_model):
    tiny_model.vlm = add_lora(tiny_model.vlm)
    mark_trainable(tiny_model)
    batch = tiny_model.processor.collate(IMAGES, [PLAIN, PLAIN], [0, 1], masks=masks_for([0, 0]))
    output = tiny_model(**batch.fields(), return_predictions=True)
    output.loss.backward()
    assert [len(masks) for masks in output.masks] == [0, 0]
    assert output.loss == output.losses.total
    missing = [n for n, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    parts = (*tiny_model.seg_projector.parameters(), *tiny_model.sam.mask_decoder.parameters())
    assert all(p.grad.abs().sum() == 0 for p in parts if p.requires_grad)


def test_a_batch_with_seg_gives_every_trained_weight_a_gradient(tiny_model):
    tiny_model.vlm = add_lora(tiny_model.vlm)
    mark_trainable(tiny_model)
    tiny_model(**mixed_batch(tiny_model).fields()).loss.backward()
    missing = [n for n, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_losses_are_those_of_the_logits_and_masks_that_are_made_when_asked_for(tiny_model):
    batch = mixed_batch(tiny_model)
    with torch.no_grad():
        plain = tiny_model(**batch.fields())
        output = tiny_model(**batch.fields(), return_predictions=True)
    assert (plain.logits, plain.masks) == (None, None)
    torch.testing.assert_close(vars(output.losses), vars(plain.losses), rtol=0, atol=0)
    predicted, labels = output.logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
    torch.testing.assert_close(
        plain.losses.cross_entropy, F.cross_entropy(predicted, labels), rtol=1e-6, atol=0
    )
    each = [
        F.binary_cross_entropy_with_logits(mask, truth.float())
        for masks, given in zip(output.masks, batch.gt_masks, strict=True)
        for mask, truth in zip(masks, given, strict=True)
    ]
    torch.testing.assert_close(plain.losses.mask_bce, 2.0 * torch.stack(each).mean(), rtol=1e-5, atol=0)


def test_learned_positions_are_searched_for_when_they_are_not_given(tiny_model):
    batch = mixed_batch(tiny_model)
    with torch.no_grad():
        expected = tiny_model(**batch.fields()).losses
        found = tiny_model(**replace(batch, learned_rows=None, learned_columns=None).fields()).losses
    torch.testing.assert_close(vars(found), vars(expected), rtol=0, atol=0)


def test_parts_that_processes_divide_are_called_alike_whatever_a_batch_holds(tiny_model):
    """Each call gathers weights from all processes; they would wait for ever if one of them called another part."""
    mark_trainable(tiny_model)
    head, calls = tiny_model.base_vlm.lm_head, []
    for name, part in {
        "head": head,
        "projector": tiny_model.seg_projector,
        "sam": tiny_model.sam.mask_decoder,
    }.items():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    longer = Conversation.of(*["What is it?", "A house and a river."] * 3)
    for row in (PLAIN, longer, referring("dog"), referring("dog", "cat")):
        batch = tiny_model.processor.collate(
            IMAGES[:1], [row], [0], masks=masks_for([row.num_seg, row.num_seg])[:1]
        )
        whole = tiny_model(**batch.fields()).losses.cross_entropy
        calls.clear()
        head.weight.ds_id = 0  # as DeepSpeed marks a divided weight
        output = tiny_model(**batch.fields())
        output.loss.backward()
        del head.weight.ds_id
        # On the way back, the pieces of the text loss are made again.
        assert calls == ["projector", "sam", *["head"] * 16]
        torch.testing.assert_close(output.losses.cross_entropy, whole, rtol=1e-6, atol=0)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    tiny_model.vlm = add_lora(tiny_model.vlm, dropout=0.0)
    mark_trainable(tiny_model)
    tiny_model.train()
    batch = mixed_batch(tiny_model)

    def gradients():
        tiny_model.zero_grad()
        tiny_model(**batch.fields()).loss.backward()
        return {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.requires_grad}

    plain = gradients()
    tiny_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


def test_finished_sam_embeddings_give_the_same_loss_and_gradients_as_images(tiny_model):
    mark_trainable(tiny_model)
    batch = mixed_batch(tiny_model)
    embeddings = tiny_model.sam.encode(batch.sam_images, batch.resized_sizes)

    def run(**given):
        tiny_model.zero_grad()
        output = tiny_model(**replace(batch, **given).fields(), return_predictions=True)
        output.loss.backward()
        return output, {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.requires_grad}

    from_images, expected = run()
    from_embeddings, gradients = run(sam_images=None, sam_embeddings=embeddings)
    torch.testing.assert_close(vars(from_embeddings.losses), vars(from_images.losses), rtol=0, atol=0)
    torch.testing.assert_close(from_embeddings.masks, from_images.masks, rtol=0, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


def test_images_and_their_embeddings_are_not_given_together_nor_both_left_out(tiny_model):
    batch = mixed_batch(tiny_model)
    embeddings = tiny_model.sam.encode(batch.sam_images, batch.resized_sizes)
    with pytest.raises(ValueError, match=r"exactly one of them; got both"):
        tiny_model(**replace(batch, sam_embeddings=embeddings).fields())
    with pytest.raises(ValueError, match=r"exactly one of them; got none"):
        tiny_model(**replace(batch, sam_images=None).fields())


def test_bfloat16_trains_and_answers(tiny_model):
    model = tiny_model.to(torch.bfloat16)
    output = model(**mixed_batch(model).fields(), return_predictions=True)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.masks[0].dtype == torch.float32
    assert model.segment(IMAGES[0], ["dog", "tree"]).masks.dtype == torch.float32


def test_segment_equals_the_mask_of_the_same_answer_given_by_hand(tiny_model):
    names = ["dog", "tree", "pool table"]
    found = tiny_model.segment(IMAGES[0], classes=names)
    assert found.names == tuple(names)
    choices = list(zip(found.names, found.present, strict=True))
    sequence = tiny_model.processor.format
    given = Conversation.of(sequence.query(names), sequence.answer(choices))
    with torch.no_grad():
        [expected] = tiny_model(**tiny_model.processor.collate([IMAGES[0]], [given], [0]).fields()).masks
    assert len(found.masks) == sum(found.present) == len(found.present_names)
    torch.testing.assert_close(found.masks, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("threshold", "present"), [(0.0, True), (1.0, False)])
def test_presence_threshold_decides_what_is_drawn(tiny_model, threshold, present):
    found = tiny_model.segment(IMAGES[0], ["dog", "tree"], presence_threshold=threshold)
    assert found.present == [present] * 2
    assert found.masks.shape == (2 * present, 40, 60)


def test_long_lists_are_split_into_queries_and_put_together_again(tiny_model):
    lists = [["dog", "tree", "cat"], ["sky"]]
    answers = tiny_model.segment_batch(IMAGES, lists, presence_threshold=0.0, classes_per_query=2)
    assert [answer.names for answer in answers] == [("dog", "tree", "cat"), ("sky",)]
    assert [tuple(answer.masks.shape) for answer in answers] == [(3, 40, 60), (1, 50, 30)]
    [first] = tiny_model.segment_batch(IMAGES[:1], [["dog", "tree"]], presence_threshold=0.0)
    torch.testing.assert_close(answers[0].masks[:2], first.masks, rtol=1e-4, atol=1e-4)


def test_generation_in_a_batch_equals_generation_alone(tiny_model):
    questions = [
        Conversation.of("Where is the dog?"),
        Conversation.of("What is on the left side of the tree?"),
    ]
    together = tiny_model.generate_batch(IMAGES, questions, max_new_tokens=6)
    for image, question, answer in zip(IMAGES, questions, together, strict=True):
        alone = tiny_model.chat(image, question, max_new_tokens=6)
        assert alone.token_ids == answer.token_ids
        assert alone.text == answer.text


def test_generated_segs_are_drawn_as_when_the_answer_is_given(tiny_model, monkeypatch):
    """The untrained model never says [SEG], so its second word is made to be one."""
    seg, eos = tiny_model.processor.token_ids.seg, tiny_model.processor.token_ids.eos
    script = iter([7, seg, 9, seg, eos])
    size = tiny_model.config.image_token_id

    def scripted(states):
        return torch.nn.functional.one_hot(torch.full(states.shape[:-1], next(script)), size).float()

    monkeypatch.setattr(tiny_model, "text_logits", scripted)
    answer = tiny_model.chat(IMAGES[0], "Where is the dog?")
    monkeypatch.undo()
    assert answer.token_ids == [7, seg, 9, seg, eos]
    assert answer.masks.shape == (2, 40, 60)

    batch = tiny_model.processor.collate([IMAGES[0]], [Conversation.of("Where is the dog?")], [0])
    start = batch.input_ids.shape[1]
    ids = torch.cat([batch.input_ids, torch.tensor([answer.token_ids])], dim=1)
    batch = replace(
        batch,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        seg_rows=torch.tensor([0, 0]),
        seg_columns=torch.tensor([start + 1, start + 3]),
        seg_images=(0, 0),
    )
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(**batch.fields()).masks[0], answer.masks, rtol=1e-4, atol=1e-4)


def test_asking_does_not_change_the_mode(tiny_model):
    tiny_model.train()
    tiny_model.chat(IMAGES[0], "Where is the dog?", max_new_tokens=1)
    assert tiny_model.training


@pytest.mark.parametrize("format", ["paper", "lisa"])
def test_nothing_asked_is_nothing_answered(tiny_model, monkeypatch, format):
    processor = replace(tiny_model.processor, format=SequenceFormat.named(format))
    monkeypatch.setattr(tiny_model.sam, "encode", lambda *_: pytest.fail("an encoder ran"))
    assert tiny_model.segment_batch([], [], processor=processor) == []
    assert tiny_model.generate_batch([], [], processor=processor) == []
    assert tiny_model.generate_batch(IMAGES, [], image_of_row=[], processor=processor) == []
    assert tiny_model.encode_batch([]) == []
    settings = EvaluationSettings()
    assert ask_for_masks(tiny_model, processor, [], [], settings) == []
    assert ask_freely(tiny_model, processor, [], [], settings) == []
    assert ask_for_text(tiny_model, processor, [], [], settings) == []
    assert predict_batch(tiny_model, processor, [], ["dog"], settings) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.segment_batch(IMAGES, [["dog"]]), "2 images but 1"),
        (lambda m: m.segment(IMAGES[0], ["dog"], classes_per_query=0), "at least 1"),
        (lambda m: m.segment(IMAGES[0], []), "at least one class"),
        (lambda m: m.segment_batch(IMAGES, [["dog"], []]), "at least one class"),
        (lambda m: m.segment(IMAGES[0], "dog"), r"the string 'dog'; pass \['dog'\]"),
        (lambda m: m.segment_batch(IMAGES, [["dog"], "tree"]), r"the string 'tree'; pass \['tree'\]"),
        (lambda m: m.segment_batch(IMAGES, ["dog", "tree"]), r"the string 'dog'"),
        (lambda m: m.segment_batch(IMAGES[:1], "x"), "1 images but the string 'x'"),
        (lambda m: m.segment(IMAGES[0], [3]), "a class name is a string, got 3"),
        (lambda m: m.segment_batch([], [["dog"]]), "0 images but 1"),
        (lambda m: m.segment_batch(IMAGES, []), "2 images but 0"),
        (lambda m: m.processor.plan("dog"), r"the string 'dog'"),
        (lambda m: m.generate_batch(IMAGES, []), "0 conversations but 2"),
        (lambda m: m.generate_batch([], [Conversation.of("dog?")]), "1 conversations but 0"),
        (
            lambda m: m.generate_batch([], [Conversation.of("dog?")], image_of_row=[0]),
            "does not fit 0 images",
        ),
        (lambda m: m.chat(IMAGES[0], Conversation.of("dog?", "No.")), "ends with the user, got No"),
        (lambda m: m.chat([IMAGES[0]], "dog?"), "uint8 array, got list"),
        (lambda m: m.processor.collate([], [], []), "at least one conversation"),
        (lambda m: m.processor.collate(IMAGES, [], [], pack_rows=True), "at least one conversation"),
    ],
)
def test_impossible_questions_are_refused(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)
