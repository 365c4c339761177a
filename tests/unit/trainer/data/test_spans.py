"""What of a conversation is trained: by the template's mark, turn by turn, the last answer, all of it."""

import time

import numpy as np
import pytest

from chats import TALK, pair_of, talk, talk_of, text, trained
from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data import spans
from finetune_trainer.data.chat import RowRefused
from rows import GENERATION, LLAMA_LIKE, THINKING, assistant, user
from tiny import CHAT_TEMPLATE


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GENERATION])
def test_every_answer_is_trained_with_its_end_of_turn(chat_with, template):
    """By rendering turn after turn, or by the template's own mark: the same spans."""
    chat = chat_with(template)
    row = talk_of(chat, TALK, None)
    assert trained(chat, row) == ["Ja – 1.<|end|>\n", "2.<|end|>\n"]
    assert not row.last_turn_only
    assert text(chat, row.tokens).endswith("2.<|end|>\n")
    assert row.tokens.dtype == np.int32
    assert not row.targets[0]


def test_the_first_token_of_all_is_never_trained(chat_with):
    """Nothing stands before it from which it could be predicted."""
    bare = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    row = talk_of(chat_with(bare), [assistant("abc")], None)
    assert row.targets.tolist() == [False, True, True]


def test_a_template_that_renders_earlier_answers_anew_trains_the_last_one(chat_with):
    chat = chat_with(THINKING)
    row = talk_of(chat, TALK, None)
    assert row.last_turn_only
    assert trained(chat, row) == ["\n</think>\n\n2.<|end|>\n"]
    alone = talk_of(chat, TALK[:3], None)
    assert not alone.last_turn_only
    assert trained(chat, alone) == ["\n</think>\n\nJa – 1.<|end|>\n"]


def test_sft_on_a_preferred_answer_trains_the_tokens_that_dpo_compares(chat_with):
    for template in (CHAT_TEMPLATE, LLAMA_LIKE, THINKING):
        chat = chat_with(template)
        pair = pair_of(chat, TALK[:4], None, TALK[4], assistant("3."))
        row = talk_of(chat, TALK[:5], None)
        assert row.tokens.tolist() == [*pair.prompt, *pair.preferred]
        assert row.targets[-pair.preferred.size :].all()
        assert not row.targets[pair.prompt.size - 1]


def test_tools_and_calls_reach_the_template(chat_with):
    chat = chat_with(
        "{% for t in tools or [] %}{{ t | tojson }};{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    calls = [{"function": {"name": "look", "arguments": '{"at": "sky"}'}}]
    messages = [user("Look."), {"role": "assistant", "content": None, "tool_calls": calls}]
    row = talk_of(chat, messages, [{"name": "look"}])
    assert text(chat, row.tokens).startswith('{"name": "look"};<|user|>Look.')
    assert trained(chat, row) == ['look{"at": "sky"}<|end|>']


def weighted(*weights: int | None) -> list[dict]:
    """TALK, its two answers with a weight each."""
    given = iter(weights)
    return [{**m, "weight": next(given)} if m["role"] == "assistant" else m for m in TALK]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GENERATION])
@pytest.mark.parametrize(
    ("weights", "spans_of"),
    [
        ((1, 1), ["Ja – 1.<|end|>\n", "2.<|end|>\n"]),
        ((None, True), ["Ja – 1.<|end|>\n", "2.<|end|>\n"]),
        ((0, 1), ["2.<|end|>\n"]),
        ((1, 0), ["Ja – 1.<|end|>\n"]),
    ],
)
def test_an_answer_of_weight_0_is_not_trained(chat_with, template, weights, spans_of):
    chat = chat_with(template)
    row = talk_of(chat, weighted(*weights))
    assert trained(chat, row) == spans_of
    assert text(chat, row.tokens).endswith(spans_of[-1])


def test_answers_of_weight_0_that_cannot_be_found_leave_the_last_one(chat_with):
    """The template marks its answers but renders earlier ones anew: what is to be passed over lies nowhere."""
    marked = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content if loop.last else m.content | upper }}<|end|>{% endgeneration %}{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = chat_with(marked)
    assert trained(chat, talk_of(chat, weighted(1, 1))) == ["JA – 1.<|end|>", "2.<|end|>"]
    assert trained(chat, talk_of(chat, weighted(0, 1))) == ["2.<|end|>"]


def test_all_tokens_are_all_but_the_first(chat_with):
    chat = chat_with(CHAT_TEMPLATE)
    row = spans.all_tokens(chat, talk(TALK))
    assert text(chat, row.tokens).endswith("<|user|>\nbye<|end|>\n")
    assert row.targets.tolist() == [False] + [True] * (row.tokens.size - 1)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_LIKE, GENERATION])
def test_an_assistant_may_begin(chat_with, template):
    chat = chat_with(template)
    row = talk_of(chat, [assistant("I begin."), user("Go on."), assistant("No.")])
    assert [span.strip() for span in trained(chat, row)] == ["I begin.<|end|>", "No.<|end|>"]
    assert [span.strip() for span in trained(chat, talk_of(chat, [assistant("Alone.")]))] == ["Alone.<|end|>"]


def test_an_assistant_that_begins_without_a_header_has_no_border(chat_with):
    with pytest.raises(RowRefused) as refused:
        talk_of(chat_with("{% for m in messages %}{{ m.content }}{% endfor %}"), [assistant("I begin.")])
    assert refused.value.code is Code.TEMPLATE_REFUSED


def test_reasoning_is_rendered_under_the_name_that_templates_know(chat_with):
    template = CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m.reasoning_content or '' }}:{{ m['content'] }}")
    for key in ("reasoning", "reasoning_content"):
        chat = chat_with(template)
        row = talk_of(chat, [user("Hi?"), {**assistant("yes"), key: "why not"}])
        assert trained(chat, row) == ["why not:yes<|end|>\n"]


def test_a_long_conversation_is_no_trouble(chat_with):
    """Turns cost rendering but no tokenising: 200 of them take a fraction of a second, not of a minute."""
    chat = chat_with(CHAT_TEMPLATE)
    turns = [(assistant if i % 2 else user)(f"turn {i}: " + "some words " * 20) for i in range(200)]
    begun = time.process_time()
    row = talk_of(chat, turns)
    assert time.process_time() - begun < 5
    assert len(trained(chat, row)) == 100
