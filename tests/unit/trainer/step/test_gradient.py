"""Nothing but the rows of a step decides its loss and gradients: no recipe and no order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from finetune_api.method import Preference
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache
from finetune_trainer.run.rows import ConversationRows, PreferenceRows
from finetune_trainer.step.gradient import NoRoom, accumulate, backward, scores
from finetune_trainer.step.recipe import ROW_ALONE, Level, Recipe
from training import disturb, load, lora

ROWS = 7
WHOLE = Recipe(Level.PACKED, 10_000)
"""All rows in one micro-batch, which every kind of row can do."""
RECIPES = [
    Recipe(Level.PACKED, 60),
    Recipe(Level.PACKED, ROW_ALONE),
    Recipe(Level.SINGLE, ROW_ALONE),
    Recipe(Level.PACKED, 60, checkpointing=True),
    Recipe(Level.PACKED, ROW_ALONE, checkpointing=True, split=True),
]
SHARED = [replace(recipe, level=Level.SHARED) for recipe in RECIPES if recipe.level is Level.PACKED]
ORDER = (6, 0, 3, 5, 1, 4, 2)


def tokens(generator, least, most):
    return generator.integers(10, 300, generator.integers(least, most)).astype(np.int32)


@pytest.fixture(scope="module")
def preference(tmp_path_factory):
    random = np.random.default_rng(0)
    rows = [Pair(i, tokens(random, 1, 20), tokens(random, 1, 12), tokens(random, 1, 12)) for i in range(ROWS)]
    folder = tmp_path_factory.mktemp("pairs") / "cache"
    write_cache(folder, CacheKind.PREFERENCE, rows)
    return PreferenceRows(open_cache(folder), Preference(beta=0.3), -40 * torch.rand(ROWS, 2, dtype=torch.float64))


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    random = np.random.default_rng(0)
    rows = []
    for line in range(ROWS):
        row = tokens(random, 4, 20)
        rows.append(Conversation(line, row, np.arange(len(row)) >= random.integers(1, 3)))
    folder = tmp_path_factory.mktemp("conversations") / "cache"
    write_cache(folder, CacheKind.CONVERSATION, rows)
    return ConversationRows(open_cache(folder))


@pytest.fixture(params=["preference", "conversations"])
def rows(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["LoRA", "Full"])
def policy(request, tiny_model):
    policy = load(tiny_model, lora=lora() if request.param == "LoRA" else None)
    disturb(policy)
    return policy


def gradients(policy, rows, recipe=WHOLE, order=tuple(range(ROWS))):
    for parameter in policy.trainable.values():
        parameter.grad = None
    policy.checkpointing(recipe.checkpointing)
    sums = accumulate(policy, rows, recipe, order, lambda: None)
    policy.checkpointing(False)
    return sums, {name: parameter.grad for name, parameter in policy.trainable.items()}


def assert_same(found, expected, tolerance=1e-5):
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_recipe_changes_nothing(policy, rows, recipe):
    expected_sums, expected = gradients(policy, rows)
    sums, found = gradients(policy, rows, recipe)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=1e-4)
    assert_same(found, expected)


@pytest.mark.parametrize("recipe", SHARED, ids=str)
def test_sharing_the_prompt_changes_nothing(policy, preference, recipe):
    expected_sums, expected = gradients(policy, preference)
    sums, found = gradients(policy, preference, recipe)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=1e-4)
    assert_same(found, expected)


def test_the_order_of_the_rows_is_that_of_the_sums_and_changes_nothing_else(policy, rows):
    expected_sums, expected = gradients(policy, rows)
    sums, found = gradients(policy, rows, Recipe(Level.PACKED, 60), ORDER)
    torch.testing.assert_close(sums.view(ROWS, -1), expected_sums.view(ROWS, -1)[list(ORDER)], rtol=1e-6, atol=1e-4)
    assert_same(found, expected)
    torch.testing.assert_close(scores(policy, rows, WHOLE, ORDER, lambda: None), sums, rtol=1e-6, atol=1e-4)


def test_a_split_pair_has_the_gradients_and_the_dropout_of_a_whole_one(tiny_model, preference):
    policy = load(tiny_model, lora=lora(dropout=0.5))
    disturb(policy)
    policy.training(True)
    results = []
    for split in (False, True):
        for parameter in policy.trainable.values():
            parameter.grad = None
        torch.manual_seed(3)
        batch = preference.batch((4,), Level.SINGLE)
        sums = backward(policy, batch, lambda sums: preference.loss(sums, (4,)), split=split)
        results.append((sums, {name: p.grad for name, p in policy.trainable.items()}, torch.rand(1)))
    (sums, expected, drawn), (split_sums, found, split_drawn) = results
    torch.testing.assert_close(split_sums, sums, rtol=0, atol=1e-9)
    assert_same(found, expected, 1e-6)
    assert drawn == split_drawn, "what is drawn next is the same too"


SINGLE, NARROW = Recipe(Level.SINGLE, ROW_ALONE), Recipe(Level.SHARED, 60)


@pytest.mark.parametrize("kind", ["LoRA", "Full"])
@pytest.mark.parametrize(
    ("plain", "other"),
    [
        (SINGLE, replace(SINGLE, split=True)),
        (SINGLE, Recipe(Level.SHARED, ROW_ALONE, checkpointing=True, split=True)),
        (NARROW, replace(NARROW, checkpointing=True)),
    ],
    ids=["split", "split and computed again", "computed again"],
)
def test_in_fp64_splitting_and_checkpointing_agree_to_ten_digits(tiny_model, preference, kind, plain, other):
    policy = load(tiny_model, lora=lora() if kind == "LoRA" else None)
    disturb(policy)
    policy.root.double()
    expected_sums, expected = gradients(policy, preference, plain)
    sums, found = gradients(policy, preference, other)
    torch.testing.assert_close(sums, expected_sums, rtol=0, atol=1e-10)
    assert_same(found, expected, 1e-10)


def test_a_split_pair_keeps_the_activations_of_one_sequence_at_a_time(policy, preference):
    batch = preference.batch((4,), Level.SINGLE)
    alive, most = {}, []
    for split in (False, True):
        alive.clear()

        def kept(tensor):
            key = (tensor.data_ptr(), tensor.numel())
            alive[key] = alive.get(key, 0) + 1
            most.append(len(alive))
            return key, tensor

        def used(held):
            alive.pop(held[0], None)
            return held[1]

        most.clear()
        with torch.autograd.graph.saved_tensors_hooks(kept, used):
            backward(policy, batch, torch.sum, split=split)
        if not split:
            whole = max(most)
    assert max(most) < 0.75 * whole


def stock_logps(policy, prompt, answer):
    """Sum of log-probabilities of `answer`, from the whole model's logits."""
    line = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = policy.as_loaded()(input_ids=line, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, line[0, len(prompt) :, None]).sum()


def test_dpo_gradients_are_those_of_the_formula_on_stock_logits(policy, preference):
    sums, found = gradients(policy, preference, Recipe(Level.SHARED, 60))
    metrics = preference.metrics(sums, range(ROWS)).read()
    for parameter in policy.trainable.values():
        parameter.grad = None
    losses = []
    for row in range(ROWS):
        pair, reference = preference.cache.pair(row), preference.reference[row]
        won = stock_logps(policy, pair.prompt, pair.preferred) - reference[0]
        lost = stock_logps(policy, pair.prompt, pair.non_preferred) - reference[1]
        losses.append(-logsigmoid(0.3 * (won - lost)))
    loss = torch.stack(losses).mean()
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in found.values())
    for name, parameter in policy.trainable.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-5 * scale)


def test_sft_divides_by_all_target_tokens_of_the_step(policy, conversations):
    sums, _ = gradients(policy, conversations, Recipe(Level.PACKED, 30))
    metrics = conversations.metrics(sums, range(ROWS)).read()
    total, count = 0.0, 0
    for row in range(ROWS):
        conversation = conversations.cache.conversation(row)
        logits = policy.as_loaded()(input_ids=torch.from_numpy(conversation.tokens.astype(np.int64))[None]).logits[0]
        logps = torch.log_softmax(logits, -1)
        for place in np.flatnonzero(conversation.targets):
            total -= logps[place - 1, int(conversation.tokens[place])].item()
            count += 1
    assert metrics["loss"] == pytest.approx(total / count, abs=1e-6)


def test_dpo_metrics_are_those_of_the_table(preference):
    policy = preference.reference + torch.tensor([[1.0, -1.0]] * 4 + [[-2.0, 1.0]] * 2 + [[0.0, 0.0]])
    metrics = preference.metrics(policy.flatten(), range(ROWS)).read()
    assert metrics["rewards/accuracies"] == pytest.approx(4 / 7), "a tie is no win"
    assert metrics["rewards/chosen"] == pytest.approx(0.3 * (4 * 1 + 2 * -2) / 7)
    assert metrics["rewards/rejected"] == pytest.approx(0.3 * (4 * -1 + 2 * 1) / 7)
    assert metrics["rewards/margins"] == pytest.approx(0.3 * (4 * 2 + 2 * -3) / 7)
    assert metrics["logps/chosen"] == pytest.approx(float(policy[:, 0].mean()))
    assert metrics["kl/chosen"] == pytest.approx(0.0)
    assert metrics["kl/rejected"] == pytest.approx(2 / 7)
    assert metrics["kl"] == pytest.approx(1 / 7)
    assert metrics["kl_per_token"] == pytest.approx(2 / preference.lengths.sum())


def test_what_is_called_before_a_micro_batch_can_end_the_step(policy, preference):
    calls = []

    def third_time_unlucky():
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accumulate(policy, preference, RECIPES[1], range(ROWS), third_time_unlucky)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
@pytest.mark.parametrize(
    "where",
    [lambda policy: (policy.backbone, "forward"), lambda _policy: (torch.Tensor, "backward")],
    ids=["forward", "backward"],
)
def test_a_micro_batch_without_room_is_named(policy, preference, monkeypatch, where, error):
    def out_of_memory(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(*where(policy), out_of_memory)
    with pytest.raises(NoRoom) as caught:
        gradients(policy, preference)
    assert set(caught.value.rows) == set(range(ROWS))


def test_any_other_error_stays_what_it_is(policy, preference, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(policy.backbone, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        gradients(policy, preference)
