"""One pass over a file: errors with their lines, what is left out, what is counted, in tokens that fit."""

import errno
import io
import json
import os
from contextlib import ExitStack

import numpy as np
import pytest

from finetune_api.data import DataOptions
from finetune_api.failures import FailureCode
from finetune_api.findings import DataErrorCode as Code
from finetune_api.findings import DataWarningCode as Odd
from finetune_api.method import MethodType, TrainOnInputs
from finetune_trainer.data import chat as chat_module
from finetune_trainer.data import check as check_module
from finetune_trainer.data.chat import ChatTokenizer
from finetune_trainer.data.check import FileCheck, Rules
from finetune_trainer.data.model import read_tokenizer
from finetune_trainer.data.report import Findings
from finetune_trainer.data.seen import Seen
from finetune_trainer.data.tokenise import Tokeniser
from finetune_trainer.data.tokens import Conversation, Pair
from finetune_trainer.failures import RunFailed
from rows import NO_SYSTEM, THINKING, assistant, conversation, preference, save_light_model, system, user, write_rows


@pytest.fixture
def run(light_model, tmp_path):
    """Check rows; gives (good rows, the FileCheck, errors as in the report)."""

    def run(
        *rows, method=MethodType.DPO, length=512, vocab=320, model=light_model, seen=None, name="trainingFile",
        inputs=TrainOnInputs.AUTO, **options,
    ):  # fmt: skip
        path = write_rows(tmp_path / "rows.jsonl", *rows)
        tokenise = Tokeniser(ChatTokenizer(model), vocab, inputs) if model else None
        rules = Rules(method, tokenise, length, DataOptions(**options))
        out = io.StringIO()
        with Findings(name) as findings:
            check = FileCheck(path, "pvc://data/rows.jsonl", rules, findings, keep.enter_context(Seen()), seen)
            good = list(check.rows(lambda **fields: None))
            findings.write(out, {}, {})
        errors = json.loads(out.getvalue())["errors"]
        return good, check, [(error["line"], error["field"], error["code"]) for error in errors]

    with ExitStack() as keep:
        yield run


def odd(check):
    """What was counted, by code."""
    return dict(check.findings.warned)


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
    good, check, errors = run({"question": "x"}, b"[]", conversation("a", "b"), preference(), method=MethodType.SFT)
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
    assert (len(good), odd(check), errors) == (1, {}, [])
    assert prompt + preferred + non_preferred > longest
    for fits_not in (longest - 1, prompt + preferred, prompt + 1):
        good, check, errors = run(row, length=fits_not)
        assert (good, odd(check), errors) == ([], {Odd.TOO_LONG: 1}, [])
        assert run(row, length=fits_not, overlong="Fail")[2] == [(1, "", Code.ROW_TOO_LONG)]


def test_a_prompt_that_leaves_no_room_goes_the_way_of_the_row(run):
    """With real data a few such rows must not end a job that was told to drop what is too long."""
    row = preference("Which?", "short", "long")
    prompt, *_ = lengths(run, row)
    _, check, errors = run(row, length=prompt)
    assert (odd(check), errors) == ({Odd.PROMPT_TOO_LONG: 1}, [])
    assert check.oddities() == [
        f"of 1 rows of trainingFile the prompt alone fills maxSeqLength {prompt}: they are left out"
    ]
    assert run(row, length=prompt, overlong="Fail")[2] == [(1, "input.messages", Code.PROMPT_TOO_LONG)]


def test_a_conversation_that_does_not_fit_is_dropped(run):
    row = conversation("Which?", "this one")
    (talk,), _, _ = run(row, method=MethodType.SFT)
    size, prompt = talk.tokens.size, int(np.argmax(talk.targets))
    assert odd(run(row, method=MethodType.SFT, length=size)[1]) == {}
    assert odd(run(row, method=MethodType.SFT, length=size - 1)[1]) == {Odd.TOO_LONG: 1}
    assert odd(run(row, method=MethodType.SFT, length=prompt)[1]) == {Odd.PROMPT_TOO_LONG: 1}
    failing = run(row, method=MethodType.SFT, length=prompt, overlong="Fail")
    assert failing[2] == [(1, "messages", Code.PROMPT_TOO_LONG)]


def test_truncated_rows_are_counted_and_what_cannot_be_is_dropped(run):
    long = preference()
    long["input"]["messages"] = [user("old " * 20), assistant("yes"), *long["input"]["messages"]]
    good, check, errors = run(long, preference(preferred="very " * 40), preference(), length=60, overlong="Truncate")
    assert ([row.line for row in good], errors) == ([1, 3], [])
    assert odd(check) == {Odd.TRUNCATED: 1, Odd.TOO_LONG: 1}
    assert good[0].prompt.tolist() == good[1].prompt.tolist()


def test_a_text_is_split_into_rows_of_the_same_line(run):
    rows = [{"text": "word " * 30, "weight": 0.5}, {"text": "short"}]
    good, check, errors = run(*rows, method=MethodType.SFT, length=50, overlong="Truncate")
    assert ([row.line for row in good], errors) == ([1, 1, 1, 1, 2], [])
    assert {row.weight for row in good[:4]} == {0.5}
    assert (check.tally.rows, check.tally.used, odd(check)) == (2, 5, {Odd.TRUNCATED: 1})


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
    assert run(row, preference(), model=model)[2] == [(1, "input.messages", Code.TEMPLATE_REFUSED)]


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
    rows = (row, dict(reversed(row.items())), preference("b"), row)
    good, check, errors = run(*rows)
    assert (len(good), odd(check), errors) == (4, {Odd.DUPLICATE_ROW: 2}, [])
    assert check.oddities() == ["2 rows of trainingFile repeat an earlier row"]
    good, check, _ = run(*rows, duplicates="Drop")
    assert ([row.line for row in good], odd(check)) == ([1, 3], {Odd.DUPLICATE_ROW: 2})


def test_columns_of_one_s_own_tell_no_rows_apart(run):
    rows = [{**preference(), "id": number} for number in range(3)]
    good, check, errors = run(*rows, extra_columns="Ignore")
    assert (len(good), odd(check), errors) == (3, {Odd.DUPLICATE_ROW: 2}, [])
    assert run(*rows)[2] == [(line, "id", Code.EXTRA_COLUMN) for line in (1, 2, 3)]


def test_rows_and_prompts_shared_with_training_are_counted(run):
    _, training, _ = run(preference("a"), preference("b"))
    rows = (preference("a"), preference("b", "other"), preference("c"))
    _, check, _ = run(*rows, seen=training.seen, name="validationFile")
    assert odd(check) == {Odd.IN_TRAINING_FILE: 1, Odd.PROMPT_IN_TRAINING_FILE: 1}
    assert check.oddities() == [
        "1 rows of validationFile are also in trainingFile: evaluation will look better than it is",
        "1 more rows of validationFile have a prompt of trainingFile",
    ]


def test_rows_are_the_same_in_whichever_columns_they_come(run):
    _, training, _ = run(preference("a"), preference("b"))
    hub = {"prompt": [user("a")], "chosen": [user("a"), assistant("this")], "rejected": [assistant("that")]}
    _, check, _ = run(hub, {**hub, "prompt": "b", "chosen": [assistant("x")]}, seen=training.seen)
    assert odd(check) == {Odd.IN_TRAINING_FILE: 1, Odd.PROMPT_IN_TRAINING_FILE: 1}


def test_the_prompt_of_a_conversation_is_all_before_its_last_answer(run):
    _, training, _ = run(conversation("a", "b", "c", "d"), method=MethodType.SFT)
    rows = (conversation("a", "b", "c", "e"), conversation("a", "x", "c", "d"))
    _, check, _ = run(*rows, method=MethodType.SFT, seen=training.seen)
    assert odd(check) == {Odd.PROMPT_IN_TRAINING_FILE: 1}


def test_conversations_of_which_only_the_last_answer_is_trained_are_counted(run, tmp_path):
    model = save_light_model(tmp_path / "thinking", THINKING)
    rows = (conversation("a", "b", "c", "d"), conversation("a", "b"))
    _, check, errors = run(*rows, method=MethodType.SFT, model=model)
    assert (errors, odd(check)) == ([], {Odd.LAST_TURN_ONLY: 1})
    assert check.oddities()[0].startswith("of 1 conversations of trainingFile only the last answer is trained")


def test_weights_go_with_their_rows_and_rows_without_weight_leave(run):
    rows = [preference("a"), {**preference("b"), "weight": 2.5}, {**preference("c"), "weight": 0}]
    good, check, errors = run(*rows)
    assert ([(row.line, row.weight) for row in good], errors) == ([(1, 1.0), (2, 2.5)], [])
    assert odd(check) == {Odd.NOTHING_TO_TRAIN: 1}
    silent = conversation("a", "b")
    silent["messages"][1]["weight"] = 0
    good, check, errors = run(silent, method=MethodType.SFT)
    assert (good, errors, odd(check)) == ([], [], {Odd.NOTHING_TO_TRAIN: 1})
    (always,), _, _ = run(silent, method=MethodType.SFT, inputs=TrainOnInputs.ALWAYS)
    assert always.targets.tolist() == [False] + [True] * (always.tokens.size - 1)


def test_text_cannot_be_trained_without_its_inputs(run):
    with pytest.raises(RunFailed) as ended:
        run({"text": "a"}, method=MethodType.SFT, inputs=TrainOnInputs.NEVER)
    assert (ended.value.failure.code, ended.value.failure.exit_code) == (FailureCode.TEXT_WITHOUT_INPUTS, 10)
    assert "trainOnInputs is Never" in ended.value.failure.sentence


def test_rows_of_token_ids_are_refused_by_name(run):
    rows = ({"input_ids": [1, 2]}, {**preference(), "input_ids": [1]})
    assert run(*rows)[2] == [(1, "input_ids", Code.PRETOKENISED), (2, "input_ids", Code.PRETOKENISED)]


def test_without_a_model_rows_are_judged_but_not_rendered(run):
    good, check, errors = run(preference(), preference(), conversation("a", "b"), method=None, model=None)
    assert (good, odd(check), errors) == ([], {Odd.DUPLICATE_ROW: 1}, [(3, "", Code.MIXED_FORMATS)])
    assert (check.tally.rows, check.format) == (3, "preference")


def test_a_template_that_never_ends_ends_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "TEMPLATE_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(RunFailed) as ended:
        run(preference(), model=save_light_model(tmp_path / "loop", loop))
    assert (ended.value.failure.exit_code, ended.value.failure.args["field"]) == (10, "data.chatTemplate")


def test_a_template_of_the_job_that_never_ends_ends_the_run(light_model, monkeypatch):
    monkeypatch.setattr(chat_module, "TEMPLATE_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(RunFailed) as ended:
        read_tokenizer("file:///model", light_model, loop)
    assert (ended.value.failure.exit_code, ended.value.failure.args["field"]) == (10, "data.chatTemplate")


def test_a_row_too_deep_to_follow_is_reported(run):
    nested = {"a": 1}
    for _ in range(700):
        nested = {"a": nested}
    row = {**preference(), "input": {"messages": [user("a")], "tools": [nested]}}
    good, check, errors = run(json.dumps(row).encode(), preference())
    assert check.tally.rows == 2
    assert good[-1].line == 2
    assert errors in ([], [(1, "", Code.INVALID_JSON)], [(1, "input.messages", Code.TEMPLATE_REFUSED)])


def test_progress_is_told_while_rows_are_read(light_model, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "PROGRESS_SECONDS", 0.0)
    path = write_rows(tmp_path / "rows.jsonl", *(preference(f"question {i}") for i in range(4)))
    rules = Rules(MethodType.DPO, Tokeniser(ChatTokenizer(light_model), 320), 512, DataOptions())
    told = []
    with Findings("trainingFile") as findings, Seen() as seen:
        list(FileCheck(path, "u", rules, findings, seen).rows(lambda **fields: told.append(fields)))
    assert [(fields["progress"].display, fields["progress"].step) for fields in told][-1] == ("4 rows", 4)
    assert [fields["progress"].percentage for fields in told] == [25, 50, 75, 100]


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
    encoder = check.rules.tokenise.chat.encoder
    assert encoder.decode(pair.prompt.tolist(), skip_special_tokens=False).startswith("look<|user|>")


def test_a_disk_that_is_full_is_no_fault_of_the_data(run, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Findings, "errors", full)
    with pytest.raises(OSError, match="No space left"):
        run({"no": "row"})
