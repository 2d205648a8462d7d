"""Constrained decoding against a loop that chooses token by token, in float64."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from model.generation.decoding import ComplexAnswer, decode_choices
from model.text.answer_plan import AnswerPlan
from tests.watching import passes_of

VOCABULARY, HIDDEN = 60, 32
SEG, NEG = 57, 58
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Wide weights make choices depend on each other; at the usual 0.02 all rows would agree at once.
    "initializer_range": 0.4,
}


@pytest.fixture(params=range(3))
def llama(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    torch.manual_seed(request.param)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval()


def random_plan(num_classes: int, generator: torch.Generator, *, first: int = 1) -> AnswerPlan:
    """Names of one to three tokens, each followed by a choice; the first choice at position `first`."""
    ids, positions = [], []
    for index in range(num_classes):
        length = first if index == 0 else int(torch.randint(1, 4, (1,), generator=generator))
        ids += torch.randint(3, 57, (length,), generator=generator).tolist()
        positions.append(len(ids))
        ids.append(SEG)
    names = tuple(f"class {i}" for i in range(num_classes))
    return AnswerPlan(names=names, token_ids=tuple(ids), positions=tuple(positions))


def greedy_token_by_token(
    model: LlamaForCausalLM, prompt: Tensor, plan: AnswerPlan, threshold: float = 0.5
) -> tuple[list[bool], list[float], Tensor]:
    """What constrained greedy decoding means: one row, no cache, one forward pass per token."""
    embed = model.get_input_embeddings()
    sequence, present, probabilities, states = prompt, [], [], []
    for position, token in enumerate(plan.token_ids):
        if position in plan.positions:
            output = model(inputs_embeds=sequence.unsqueeze(0), output_hidden_states=True)
            choice = output.logits[0, -1, [SEG, NEG]].softmax(-1)[0].item()
            present.append(choice >= threshold)
            probabilities.append(choice)
            if present[-1]:
                states.append(output.hidden_states[-1][0, -1])
            token = SEG if present[-1] else NEG
        sequence = torch.cat([sequence, embed(torch.tensor([token]))])
    return present, probabilities, torch.stack(states) if states else torch.zeros(0, HIDDEN).double()


def pad_left(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    length = max(len(prompt) for prompt in prompts)
    embeds = torch.full((len(prompts), length, HIDDEN), 7.0).double()
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        embeds[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return embeds, mask


def assert_same(answer: ComplexAnswer, expected: tuple[list[bool], list[float], Tensor]) -> None:
    present, probabilities, states = expected
    assert answer.present == present
    assert answer.probabilities == pytest.approx(probabilities, abs=1e-9)
    torch.testing.assert_close(answer.seg_states, states, rtol=0, atol=1e-9)
    assert answer.present_names == tuple(n for n, p in zip(answer.names, present, strict=True) if p)


@torch.no_grad()
@pytest.mark.parametrize("threshold", [None, 0.2, 0.9])
def test_decisions_and_states_equal_token_by_token_decoding(llama: LlamaForCausalLM, threshold: float | None):
    generator = torch.Generator().manual_seed(5)
    sizes = [(9, 12), (4, 1), (6, 7), (11, 20)]  # (prompt length, number of classes)
    prompts = [torch.randn(length, HIDDEN, generator=generator).double() for length, _ in sizes]
    plans = [random_plan(num, generator, first=index % 2) for index, (_, num) in enumerate(sizes)]
    answers = decode_choices(
        llama.model,
        llama.lm_head,
        *pad_left(prompts),
        plans,
        seg_id=SEG,
        neg_id=NEG,
        presence_threshold=threshold,
    )
    for answer, prompt, plan in zip(answers, prompts, plans, strict=True):
        assert_same(
            answer, greedy_token_by_token(llama, prompt, plan, 0.5 if threshold is None else threshold)
        )
    assert 1 < answers[0].num_passes <= max(num for _, num in sizes) + 1
    both = {present for answer in answers for present in answer.present}
    assert both == {True, False} or threshold is not None


@torch.no_grad()
def test_any_model_and_any_batch_give_the_answers_of_token_by_token_decoding():
    """Random depths, head counts, prompts, lists, thresholds and pieces."""
    passes = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, generator: torch.Generator = generator) -> int:
            return int(torch.randint(low, high + 1, (1,), generator=generator))

        torch.manual_seed(seed)
        sizes = {"num_hidden_layers": draw(1, 3), "num_key_value_heads": 2 ** draw(0, 2)}
        config = LlamaConfig(**TEXT | sizes | {"initializer_range": 0.05 * draw(1, 10)})
        model = LlamaForCausalLM(config).double().eval()
        plans = [random_plan(draw(1, 14), generator, first=draw(0, 3)) for _ in range(draw(1, 5))]
        prompts = [torch.randn(draw(1, 12), HIDDEN, generator=generator).double() for _ in plans]
        threshold = [None, 0.3, 0.5, 0.6][draw(0, 3)]
        answers = decode_choices(
            model.model,
            model.lm_head,
            *pad_left(prompts),
            plans,
            seg_id=SEG,
            neg_id=NEG,
            presence_threshold=threshold,
            piece_tokens=[None, 1, 3, 8][draw(0, 3)],
        )
        for answer, prompt, plan in zip(answers, prompts, plans, strict=True):
            assert_same(answer, greedy_token_by_token(model, prompt, plan, threshold or 0.5))
            assert answer.num_passes <= max(len(plan.names) for plan in plans) + 1
        passes.append(answers[0].num_passes)
    assert max(passes) > 3  # or there was nothing to find out
    assert statistics.median(passes) <= 6


@torch.no_grad()
def test_what_rows_share_may_be_in_the_cache(llama: LlamaForCausalLM):
    generator = torch.Generator().manual_seed(7)
    shared = [torch.randn(5, HIDDEN, generator=generator).double() for _ in range(2)]
    owners = [1, 0, 1]
    own = [torch.randn(length, HIDDEN, generator=generator).double() for length in (4, 1, 6)]
    plans = [random_plan(num, generator) for num in (9, 4, 7)]
    cache = DynamicCache()
    llama.model(inputs_embeds=torch.stack(shared), past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor(owners))
    embeds, mask = pad_left(own)
    answers = decode_choices(
        llama.model,
        llama.lm_head,
        embeds,
        torch.cat([mask.new_ones(3, 5), mask], dim=1),
        plans,
        seg_id=SEG,
        neg_id=NEG,
        cache=cache,
    )
    for answer, owner, rest, plan in zip(answers, owners, own, plans, strict=True):
        assert_same(answer, greedy_token_by_token(llama, torch.cat([shared[owner], rest]), plan))


@torch.no_grad()
def test_finished_rows_are_not_computed_any_more(llama: LlamaForCausalLM):
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randn(4, HIDDEN, generator=generator).double() for _ in range(3)]
    plans = [random_plan(num, generator) for num in (1, 25, 1)]
    with passes_of(llama.model) as passes:
        answers = decode_choices(
            llama.model, llama.lm_head, *pad_left(prompts), plans, seg_id=SEG, neg_id=NEG
        )
    rows = [num_rows for num_rows, _ in passes]
    assert rows[0] == 3
    assert set(rows[1:]) == {1}
    for answer, prompt, plan in zip(answers, prompts, plans, strict=True):
        assert_same(answer, greedy_token_by_token(llama, prompt, plan))


@torch.no_grad()
def test_a_row_is_answered_the_same_alone_and_in_a_batch(llama: LlamaForCausalLM):
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randn(length, HIDDEN, generator=generator).double() for length in (3, 10)]
    plans = [random_plan(num, generator) for num in (15, 3)]
    choose = {"seg_id": SEG, "neg_id": NEG}
    together = decode_choices(llama.model, llama.lm_head, *pad_left(prompts), plans, **choose)
    for prompt, plan, expected in zip(prompts, plans, together, strict=True):
        (alone,) = decode_choices(llama.model, llama.lm_head, *pad_left([prompt]), [plan], **choose)
        assert alone.present == expected.present
        torch.testing.assert_close(alone.seg_states, expected.seg_states, rtol=0, atol=1e-9)


@torch.no_grad()
def test_an_answer_that_is_one_choice_and_nothing_else(llama: LlamaForCausalLM):
    plan = random_plan(1, torch.Generator().manual_seed(0), first=0)
    prompt = torch.randn(5, HIDDEN).double()
    (answer,) = decode_choices(
        llama.model, llama.lm_head, *pad_left([prompt]), [plan], seg_id=SEG, neg_id=NEG
    )
    assert_same(answer, greedy_token_by_token(llama, prompt, plan))


@torch.no_grad()
def test_llava_with_an_image_in_the_prompt_decides_as_its_own_forward():
    torch.manual_seed(3)
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    image_id = VOCABULARY - 1
    config = LlavaConfig(vision_config=tower, text_config=LlamaConfig(**TEXT), image_token_index=image_id)
    model = LlavaForConditionalGeneration(config).double().eval()
    prompt, image = [1, *[image_id] * 4, 7, 8, 9], torch.randn(1, 3, 28, 28).double()
    decoder = model.model.language_model
    embedded: list[Tensor] = []
    hook = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: embedded.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(input_ids=torch.tensor([prompt]), pixel_values=image)
    hook.remove()
    plan = random_plan(6, torch.Generator().manual_seed(1), first=2)
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    (answer,) = decode_choices(decoder, model.lm_head, embedded[0], mask, [plan], seg_id=SEG, neg_id=NEG)
    ids, present, states = prompt, [], []
    for position, token in enumerate(plan.token_ids):
        if position in plan.positions:
            output = model(input_ids=torch.tensor([ids]), pixel_values=image, output_hidden_states=True)
            present.append(bool(output.logits[0, -1, SEG] >= output.logits[0, -1, NEG]))
            states += [output.hidden_states[-1][0, -1]] * present[-1]
            token = SEG if present[-1] else NEG
        ids = [*ids, token]
    assert answer.present == present
    assert 0 < len(states) < 6
    torch.testing.assert_close(answer.seg_states, torch.stack(states), rtol=0, atol=1e-9)


@torch.no_grad()
def test_final_tokens_stay_in_the_cache(llama: LlamaForCausalLM):
    plan, prompt = random_plan(12, torch.Generator().manual_seed(2)), torch.randn(9, HIDDEN).double()
    with passes_of(llama.model) as passes:
        (answer,) = decode_choices(
            llama.model, llama.lm_head, *pad_left([prompt]), [plan], seg_id=SEG, neg_id=NEG
        )
    lengths = [length for _, length in passes]
    # Prompt and first draft go together; then only what is behind the first change is run.
    assert lengths[0] == 9 + plan.positions[-1]
    assert lengths[1] <= plan.positions[-1]
    assert lengths == sorted(set(lengths), reverse=True)
    assert len(lengths) == answer.num_passes > 1


@torch.no_grad()
def test_a_wrong_draft_costs_its_piece_and_not_what_is_behind_it(llama: LlamaForCausalLM):
    plan, prompt = random_plan(40, torch.Generator().manual_seed(2)), torch.randn(9, HIDDEN).double()
    choose = {"seg_id": SEG, "neg_id": NEG}
    run: dict[int, list[int]] = {}
    for piece_tokens in (10, 1000):
        with passes_of(llama.model) as passes:
            (answer,) = decode_choices(
                llama.model, llama.lm_head, *pad_left([prompt]), [plan], **choose, piece_tokens=piece_tokens
            )
        run[piece_tokens] = [length for _, length in passes]
        assert_same(answer, greedy_token_by_token(llama, prompt, plan))
        assert len(passes) == answer.num_passes <= 40
    # Names have three tokens at most, so up to three behind the last choice of a piece belong to the next.
    assert run[10][0] <= 9 + 10
    assert max(run[10][1:]) <= 10 + 3
    assert run[1000][0] == 9 + plan.positions[-1]
    assert sum(run[10]) < sum(run[1000])


@torch.no_grad()
def test_thresholds_at_the_ends_choose_everything_or_nothing(llama: LlamaForCausalLM):
    prompt, plan = torch.randn(5, HIDDEN).double(), random_plan(8, torch.Generator().manual_seed(0))
    for threshold, expected in ((0, True), (1, False)):
        (answer,) = decode_choices(
            llama.model,
            llama.lm_head,
            *pad_left([prompt]),
            [plan],
            seg_id=SEG,
            neg_id=NEG,
            presence_threshold=threshold,
        )
        assert answer.present == [expected] * 8
        assert answer.seg_states.shape == (8 * expected, HIDDEN)
    with pytest.raises(ValueError, match="presence_threshold"):
        decode_choices(
            llama.model,
            llama.lm_head,
            *pad_left([prompt]),
            [plan],
            seg_id=SEG,
            neg_id=NEG,
            presence_threshold=1.5,
        )


@torch.no_grad()
def test_half_precision_ends_within_the_number_of_classes(llama: LlamaForCausalLM):
    model = llama.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(8)
    plans = [random_plan(num, generator) for num in (12, 9)]
    embeds, mask = pad_left([torch.randn(length, HIDDEN).double() for length in (4, 6)])
    answers = decode_choices(
        model.model, model.lm_head, embeds.bfloat16(), mask, plans, seg_id=SEG, neg_id=NEG
    )
    assert answers[0].num_passes <= 12
