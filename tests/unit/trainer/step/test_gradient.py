"""Nothing but the rows of a step decides its loss and gradients: no split, order or padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from finetune_api.method import Preference
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache
from finetune_trainer.failures import RunFailed
from finetune_trainer.run.rows import ConversationRows, PreferenceRows
from finetune_trainer.step.gradient import accumulate
from training import disturb, load, lora

ROWS = 7
SPLITS = [(tuple(range(ROWS)),), tuple((row,) for row in range(ROWS)), ((6, 0), (3,), (5, 1, 4), (2,))]


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


def gradients(policy, rows, split):
    for parameter in policy.trainable.values():
        parameter.grad = None
    sums = accumulate(policy, rows, split, lambda: None)
    metrics = rows.metrics(sums, [row for batch in split for row in batch]).read()
    return metrics, {name: parameter.grad for name, parameter in policy.trainable.items()}


@pytest.mark.parametrize("split", SPLITS[1:])
def test_the_split_into_micro_batches_changes_nothing(policy, rows, split):
    metrics, expected = gradients(policy, rows, SPLITS[0])
    others, found = gradients(policy, rows, split)
    assert others == pytest.approx(metrics, rel=1e-6, abs=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale)


def stock_logps(policy, prompt, answer):
    """Sum of log-probabilities of `answer`, from the whole model's logits."""
    line = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = policy.as_loaded()(input_ids=line, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, line[0, len(prompt) :, None]).sum()


def test_dpo_gradients_are_those_of_the_formula_on_stock_logits(policy, preference):
    metrics, found = gradients(policy, preference, SPLITS[2])
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
    metrics, _ = gradients(policy, conversations, SPLITS[2])
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
        accumulate(policy, preference, SPLITS[1], third_time_unlucky)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "where",
    [lambda policy: (policy.backbone, "forward"), lambda _policy: (torch.Tensor, "backward")],
    ids=["forward", "backward"],
)
def test_too_little_memory_is_named(policy, preference, monkeypatch, where):
    def out_of_memory(*_args, **_kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(*where(policy), out_of_memory)
    with pytest.raises(RunFailed, match="does not fit into cpu memory") as caught:
        accumulate(policy, preference, SPLITS[0], lambda: None)
    assert caught.value.failure.exit_code == 14
