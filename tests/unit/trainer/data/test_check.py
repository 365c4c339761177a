"""One pass over a file: errors with their lines, what is left out, what is counted, in tokens that fit."""

import errno
import json
import os

import numpy as np
import pytest

from finetune_api.method import MethodType
from finetune_api.report import DataErrorCode as Code
from finetune_api.report import FailureCode
from finetune_trainer.data import check as check_module
from finetune_trainer.data.chat import ChatTokenizer
from finetune_trainer.data.check import FileCheck, Rules, Seen
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.statistics import oddities, token_statistics
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache
from finetune_trainer.failures import RunFailed
from rows import NO_SYSTEM, THINKING, assistant, conversation, preference, save_light_model, system, user, write_rows


@pytest.fixture
def run(light_model, tmp_path):
    """Check rows; gives (good rows, the FileCheck, errors as in the report)."""

    def run(*rows, method=MethodType.DPO, length=512, vocab=320, model=light_model, seen=None, name="trainingFile"):
        path = write_rows(tmp_path / "rows.jsonl", *rows)
        rules = Rules(ChatTokenizer(model), method, length, vocab)
        with DataReport(tmp_path / "data-report.json") as report:
            check = FileCheck(name, path, "pvc://data/rows.jsonl", rules, report)
            good = list(check.rows(seen, lambda **fields: None))
        errors = json.loads((tmp_path / "data-report.json").read_text())["errors"]
        return good, check, [(error["line"], error["field"], error["code"]) for error in errors]

    return run


def test_five_kinds_of_bad_rows_are_all_found_and_the_good_ones_kept(run):
    system_row = preference()
    system_row["input"]["messages"].insert(0, {"role": "narrator", "content": "x"})
    good, check, errors = run(
        preference(),
        b"{broken",
        preference(preferred="  "),
        conversation("a", "b"),
        b"",
        preference(preferred="same", non_preferred="same"),
        system_row,
        preference("Another?"),
    )
    assert [row.line for row in good] == [1, 8]
    assert errors == [
        (2, "", Code.INVALID_JSON),
        (3, "preferred_output[0].content", Code.EMPTY_ANSWER),
        (4, "", Code.MIXED_FORMATS),
        (6, "non_preferred_output", Code.IDENTICAL_ANSWERS),
        (7, "input.messages[0].role", Code.INVALID_ROLE),
    ]
    assert (check.tally.rows, check.tally.used) == (7, 2)


def test_the_format_is_that_of_the_first_row_that_has_one(run):
    good, check, errors = run({"text": "x"}, b"[]", conversation("a", "b"), preference(), method=MethodType.SFT)
    assert errors == [(1, "", Code.UNKNOWN_FORMAT), (2, "", Code.NOT_AN_OBJECT), (4, "", Code.MIXED_FORMATS)]
    assert check.format == "conversation"
    assert len(good) == 1


@pytest.mark.parametrize("content", [[], [b"", b"  "]])
def test_a_file_without_rows_is_an_error(run, content):
    assert run(*content)[2] == [(1, "", Code.EMPTY_FILE)]


def test_dpo_gets_pairs_and_sft_conversations_from_the_same_file(run):
    row = preference("Which?", "this", "that")
    (pair,), _, _ = run(row, method=MethodType.DPO)
    (talk,), check, _ = run(row, method=MethodType.SFT)
    assert isinstance(pair, Pair)
    assert isinstance(talk, Conversation)
    assert check.format == "preference"
    assert talk.tokens.tolist() == [*pair.prompt, *pair.preferred]
    assert np.flatnonzero(talk.targets).tolist() == list(range(pair.prompt.size, talk.tokens.size))


def test_dpo_on_conversations_ends_at_once_with_what_is_needed(run):
    with pytest.raises(RunFailed) as ended:
        run(conversation("a", "b"))
    assert ended.value.failure.code is FailureCode.METHOD_NEEDS_PREFERENCE
    assert ended.value.failure.sentence.startswith("trainingFile pvc://data/rows.jsonl has the format conversation")


def lengths(run, row):
    (pair,), _, _ = run(row)
    return pair.prompt.size, pair.preferred.size, pair.non_preferred.size


def test_each_side_of_a_pair_has_to_fit_on_its_own(run):
    row = preference("Which?", "short", "a much longer answer")
    prompt, preferred, non_preferred = lengths(run, row)
    longest = prompt + non_preferred
    good, check, errors = run(row, length=longest)
    assert (len(good), check.tally.dropped, errors) == (1, 0, [])
    assert prompt + preferred + non_preferred > longest
    for fits_not in (longest - 1, prompt + preferred, prompt + 1):
        good, check, errors = run(row, length=fits_not)
        assert (good, check.tally.dropped, errors) == ([], 1, [])
    assert run(row, length=prompt)[2] == [(1, "input.messages", Code.PROMPT_TOO_LONG)]


def test_a_conversation_that_does_not_fit_is_dropped_and_a_prompt_that_leaves_no_room_is_an_error(run):
    row = conversation("Which?", "this one")
    (talk,), _, _ = run(row, method=MethodType.SFT)
    size, prompt = talk.tokens.size, int(np.argmax(talk.targets))
    assert run(row, method=MethodType.SFT, length=size)[1].tally.dropped == 0
    assert run(row, method=MethodType.SFT, length=size - 1)[1].tally.dropped == 1
    assert run(row, method=MethodType.SFT, length=prompt)[2] == [(1, "messages", Code.PROMPT_TOO_LONG)]


def test_a_token_beyond_the_embedding_is_an_error(run):
    (pair,), _, _ = run(preference())
    highest = max(part.max() for part in (pair.prompt, pair.preferred, pair.non_preferred))
    assert run(preference(), vocab=highest)[2] == [(1, "", Code.TOKEN_OUT_OF_RANGE)]
    assert run(preference(), vocab=highest + 1)[2] == []
    assert run(preference(), vocab=None)[2] == []


def test_a_row_that_the_template_refuses_is_an_error(run, tmp_path):
    model = save_light_model(tmp_path / "no-system", NO_SYSTEM)
    row = preference()
    row["input"]["messages"].insert(0, system("Be brief."))
    assert run(row, preference(), model=model)[2] == [(1, "messages", Code.TEMPLATE_REFUSED)]


def test_a_missing_template_is_told_once(run, tmp_path):
    model = save_light_model(tmp_path / "bare", template=None)
    assert run(preference(), preference("b"), b"{", model=model)[2] == [
        (1, "", Code.NO_CHAT_TEMPLATE),
        (3, "", Code.INVALID_JSON),
    ]


def test_half_a_surrogate_pair_is_no_text(run):
    row = json.dumps(preference("\ud83d")).encode()
    assert run(row)[2] == [(1, "", Code.INVALID_UTF8)]


def test_rows_that_repeat_are_counted_whatever_the_order_of_their_keys(run):
    row = preference()
    good, check, errors = run(row, dict(reversed(row.items())), preference("b"), row)
    assert (len(good), check.tally.duplicates, errors) == (4, 2, [])
    assert list(oddities(check)) == ["2 rows of trainingFile repeat an earlier row"]


def test_rows_and_prompts_shared_with_training_are_counted(run):
    _, training, _ = run(preference("a"), preference("b"))
    rows = (preference("a"), preference("b", "other"), preference("c"))
    _, check, _ = run(*rows, seen=training.seen, name="validationFile")
    assert (check.tally.shared_rows, check.tally.shared_prompts) == (1, 1)
    assert list(oddities(check)) == [
        "1 rows of validationFile are also in trainingFile: evaluation will look better than it is",
        "1 more rows of validationFile have a prompt of trainingFile",
    ]


def test_the_prompt_of_a_conversation_is_all_before_its_last_answer(run):
    _, training, _ = run(conversation("a", "b", "c", "d"), method=MethodType.SFT)
    rows = (conversation("a", "b", "c", "e"), conversation("a", "x", "c", "d"))
    _, check, _ = run(*rows, method=MethodType.SFT, seen=training.seen)
    assert (check.tally.shared_rows, check.tally.shared_prompts) == (0, 1)


def test_conversations_of_which_only_the_last_answer_is_trained_are_counted(run, tmp_path):
    model = save_light_model(tmp_path / "thinking", THINKING)
    rows = (conversation("a", "b", "c", "d"), conversation("a", "b"))
    _, check, errors = run(*rows, method=MethodType.SFT, model=model)
    assert errors == []
    assert [sentence.split(" only")[0] for sentence in oddities(check)] == ["of 1 conversations of trainingFile"]


def test_progress_is_told_while_rows_are_read(light_model, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "PROGRESS_SECONDS", 0.0)
    path = write_rows(tmp_path / "rows.jsonl", *(preference(f"question {i}") for i in range(4)))
    rules = Rules(ChatTokenizer(light_model), MethodType.DPO, 512, 320)
    told = []
    with DataReport(tmp_path / "report.json") as report:
        list(FileCheck("trainingFile", path, "u", rules, report).rows(None, lambda **fields: told.append(fields)))
    assert [(fields["progress"].display, fields["progress"].step) for fields in told][-1] == ("4 rows", 4)
    assert [fields["progress"].percentage for fields in told] == [25, 50, 75, 100]


def test_seen_digests_are_small(run):
    _, check, _ = run(preference("x" * 400))
    assert {len(digest) for digest in (*check.seen.rows, *check.seen.prompts)} == {16}
    assert Seen().rows == set()


def test_statistics_are_of_each_side(tmp_path):
    def ids(count):
        return np.zeros(count, np.int32)

    rows = [Pair(i, ids(i), ids(2 * i), ids(1)) for i in range(1, 101)]
    write_cache(tmp_path / "c", CacheKind.PREFERENCE, rows)
    found = token_statistics(open_cache(tmp_path / "c"))
    assert {side: (value.p50, value.p95, value.max) for side, value in found.items()} == {
        "prompt": (50, 95, 100),
        "preferred": (100, 190, 200),
        "nonPreferred": (1, 1, 1),
    }
    talks = [Conversation(1, ids(7), np.zeros(7, np.bool_))]
    write_cache(tmp_path / "t", CacheKind.CONVERSATION, talks)
    assert token_statistics(open_cache(tmp_path / "t"))["sequence"].max == 7


def test_tools_of_a_preference_row_reach_the_template(run, tmp_path):
    template = (
        "{% for t in tools or [] %}{{ t.name }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    )
    template += "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    model = save_light_model(tmp_path / "tools", template)
    row = {
        "input": {"messages": [user("Look.")], "tools": [{"name": "look"}]},
        "preferred_output": [assistant("yes")],
        "non_preferred_output": [assistant("no")],
    }
    (pair,), check, _ = run(row, model=model)
    assert check.rules.chat.encoder.decode(pair.prompt.tolist(), skip_special_tokens=False).startswith("look<|user|>")


def test_a_disk_that_is_full_is_no_fault_of_the_data(run, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DataReport, "add", full)
    with pytest.raises(OSError, match="No space left"):
        run({"no": "row"})
