"""The check command: a file with each rule broken once, what is printed, how it ends; and no row brings it down."""

import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_trainer import __main__ as entry
from finetune_trainer import check as command
from finetune_trainer.data import check as check_module
from finetune_trainer.data.seen import Seen
from hub import serving
from rows import (
    NO_SYSTEM,
    THINKING,
    assistant,
    changed,
    conversation,
    preference,
    save_light_model,
    system,
    user,
    write_rows,
)
from training import shared_preferences

CALL = {"function": {"name": "look", "arguments": 3}}


def at(path: str, value: object, row: dict | None = None) -> dict:
    """A good row but for one field; ... removes it. `path` is written with dots."""
    steps = [int(step) if step.isdecimal() else step for step in path.split(".")]
    return changed(row or preference("p " + path), steps, value)


OUTPUTS = ("preferred_output", "non_preferred_output")
M = "input.messages.0"
EVERY_RULE: list[tuple[object, str, str]] = [
    (b'{"input": "\xff"}', "", "InvalidUtf8"),
    (b'{"input": {}', "", "InvalidJson"),
    (b"[1]", "", "NotAnObject"),
    ({"question": "a"}, "", "UnknownFormat"),
    (conversation("a", "b"), "", "MixedFormats"),
    (at("rating", 5), "rating", "ExtraColumn"),
    (at("input_ids", [1]), "input_ids", "Pretokenised"),
    (at("weight", -1), "weight", "InvalidWeight"),
    (at("preferred_output", ...), "preferred_output", "MissingField"),
    (at("input", []), "input", "WrongType"),
    (at("input.messages", ...), "input.messages", "MissingField"),
    (at("input.messages", {}), "input.messages", "WrongType"),
    (at("input.messages", []), "input.messages", "EmptyMessages"),
    (at("input.tools", "look"), "input.tools", "WrongType"),
    (at(M, "hello"), "input.messages[0]", "WrongType"),
    (at(f"{M}.role", ...), "input.messages[0].role", "MissingField"),
    (at(f"{M}.role", 1), "input.messages[0].role", "WrongType"),
    (at(f"{M}.role", "human"), "input.messages[0].role", "InvalidRole"),
    (at(f"{M}.content", ...), "input.messages[0].content", "MissingField"),
    (at(f"{M}.content", 7), "input.messages[0].content", "WrongType"),
    (at(f"{M}.content", [{"type": "image_url"}]), "input.messages[0].content[0].image_url.url", "WrongType"),
    (at(f"{M}.content", [{"type": "video_url"}]), "input.messages[0].content[0].type", "UnsupportedContent"),
    (at(f"{M}.weight", 1.0), "input.messages[0].weight", "InvalidWeight"),
    (at(f"{M}.weight", 2), "input.messages[0].weight", "InvalidWeight"),
    (at(M, {"role": "tool", "content": "a", "tool_call_id": 1}), "input.messages[0].tool_call_id", "WrongType"),
    (at(M, assistant("a")), "input.messages[0].role", "LastMessageFromAssistant"),
    (at("preferred_output", assistant("a")), "preferred_output", "WrongType"),
    (at("preferred_output", []), "preferred_output", "NotOneAssistantMessage"),
    (at("preferred_output", [assistant("a")] * 2), "preferred_output", "NotOneAssistantMessage"),
    (at("preferred_output.0.role", ...), "preferred_output[0].role", "MissingField"),
    (at("preferred_output.0.role", "user"), "preferred_output[0].role", "NotOneAssistantMessage"),
    (at("preferred_output.0.content", ...), "preferred_output[0].content", "MissingField"),
    (at("preferred_output.0.reasoning", 1), "preferred_output[0].reasoning", "WrongType"),
    (at("preferred_output.0.tool_calls", [CALL]), "preferred_output[0].tool_calls[0].function.arguments", "WrongType"),
    (at("preferred_output.0.content", " \n"), "preferred_output[0].content", "EmptyAnswer"),
    (at("preferred_output.0.content", "that"), "non_preferred_output", "IdenticalAnswers"),
    (at("input.messages", [system("S"), user("Q")]), "input.messages", "TemplateRefused"),
    (at(f"{M}.content", "\ud83d"), "", "InvalidUtf8"),
]


@pytest.fixture(scope="module")
def strict_model(tmp_path_factory):
    """A model whose template takes no system message."""
    return save_light_model(tmp_path_factory.mktemp("strict") / "model", NO_SYSTEM)


@pytest.fixture
def check(capsys):
    """Run the command; gives (exit code, what it printed, what it complained of)."""

    def check(*arguments: object):
        code = entry.main(["check", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return check


def test_each_rule_broken_once_is_found_once_with_its_line(check, strict_model, tmp_path):
    odd = [preference("again"), preference("again"), preference("w") | {"weight": 0}, preference("x" * 600)]
    odd.append(preference("end<|end|>"))
    file = write_rows(tmp_path / "rows.jsonl", *odd, b"", *(row for row, _, _ in EVERY_RULE), preference("last"))
    code, out, _ = check(file, "--model", strict_model, "--method", "DPO", "--max-seq-length", 200, "--json")
    report = json.loads(out)
    assert code == 11
    assert list(report) == ["format", "rows", "errorCount", "errors", "warnings", "tokens"]
    assert [(e["line"], e["field"], e["code"]) for e in report["errors"]] == [
        (line, field, expected) for line, (_, field, expected) in enumerate(EVERY_RULE, start=7)
    ]
    assert [(w["line"], w["code"]) for w in report["warnings"]] == [
        (2, "DuplicateRow"),
        (3, "NothingToTrain"),
        (4, "PromptTooLong"),
        (5, "ControlToken"),
    ]
    assert (report["format"], report["rows"], report["errorCount"]) == (
        "preference", len(EVERY_RULE) + 6, len(EVERY_RULE)
    )  # fmt: skip
    assert all(len(finding["message"]) > 20 for finding in (*report["errors"], *report["warnings"]))
    assert set(report["tokens"]) == {"prompt", "preferred", "nonPreferred"}
    without_model = [e for e in report["errors"] if e["code"] != "TemplateRefused"]
    assert json.loads(check(file, "--json")[1])["errors"] == without_model


def test_each_rule_of_conversations_broken_once(check, light_model, tmp_path):
    rows = [
        conversation("a", "b"),
        {"messages": [user("a")]},
        conversation("a", ""),
        at("messages.1.weight", "1", conversation("a", "b")),
        at("messages.1.reasoning_content", {}, conversation("a", "b")),
        {**conversation("a", "c"), "tools": {}},
        {**conversation("a", "d"), "input": {}},
    ]
    code, out, _ = check(write_rows(tmp_path / "a.jsonl", *rows), "--model", light_model, "--json")
    assert code == 11
    assert [(e["line"], e["field"], e["code"]) for e in json.loads(out)["errors"]] == [
        (2, "messages", "NoAssistantMessage"),
        (3, "messages[1].content", "EmptyAnswer"),
        (4, "messages[1].weight", "InvalidWeight"),
        (5, "messages[1].reasoning_content", "WrongType"),
        (6, "tools", "WrongType"),
        (7, "input", "ExtraColumn"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [("a.jsonl", b"\n \n", "EmptyFile"), ("a.csv", b"a,b\n", "UnknownFileKind"), ("a", b"\x1f\x8b\x08", "DamagedFile")],
)
def test_each_rule_of_files_broken_once(check, tmp_path, name, content, finding):
    (tmp_path / name).write_bytes(content)
    code, out, _ = check(tmp_path / name, "--json")
    found = json.loads(out)
    assert (code, [(e["line"], e["code"]) for e in found["errors"]]) == (11, [(1, finding)])


def test_a_table_tells_people_what_to_do(check, light_model, tmp_path):
    rows = [preference("a"), preference("a"), preference(preferred=""), *(b"{" for _ in range(30))]
    code, out, _ = check(write_rows(tmp_path / "[red].jsonl", *rows), "--model", light_model)
    assert code == 11
    for told in (
        "33 rows, format preference",
        "InvalidJson",
        "4, 5, 6, 7, 8, ...",
        "DuplicateRow",
        "The first 20 of 31",
        "preferred_output[0].content",
        "nonPreferred",
        "invalid: 31 errors in 31 rows",
    ):
        assert told in " ".join(out.split())
    assert "[red].jsonl" in out.replace("\n", "")


def test_warnings_do_not_fail(check, tmp_path):
    code, out, _ = check(write_rows(tmp_path / "a.jsonl", preference(), preference()))
    assert (code, out.splitlines()[-1]) == (0, "clean, 1 warnings")
    code, out, _ = check(write_rows(tmp_path / "b.jsonl", preference()))
    assert (code, out.splitlines()[-1]) == (0, "clean")


def test_options_mean_what_the_fields_of_a_job_mean(check, light_model, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", {**preference("x" * 90), "id": 1}, {**preference("y"), "id": 2})
    options = ("--model", light_model, "--max-seq-length", 80, "--extra-columns", "Ignore", "--json")
    code, out, _ = check(file, *options)
    assert (code, [w["code"] for w in json.loads(out)["warnings"]]) == (0, ["PromptTooLong"])
    code, out, _ = check(file, *options, "--overlong", "Fail")
    assert (code, [e["code"] for e in json.loads(out)["errors"]]) == (11, ["PromptTooLong"])
    talks = write_rows(tmp_path / "b.jsonl", conversation("a", "b", "c", "d"))
    (tmp_path / "thinking.jinja").write_text(THINKING)
    code, out, _ = check(talks, "--model", light_model, "--chat-template", tmp_path / "thinking.jinja", "--json")
    assert [w["code"] for w in json.loads(out)["warnings"]] == ["LastTurnOnly"]


def test_rows_that_do_not_fit_the_method_are_a_finding(check, tmp_path):
    code, out, _ = check(write_rows(tmp_path / "a.jsonl", b"", {"text": "a"}), "--method", "DPO", "--json")
    assert (code, [(e["line"], e["code"]) for e in json.loads(out)["errors"]]) == (11, [(2, "NotPreference")])


def test_what_is_not_the_file_s_fault_ends_with_a_sentence(check, tmp_path, light_model):
    code, out, err = check(tmp_path / "gone.jsonl")
    assert (code, out) == (20, "")
    assert "gone.jsonl does not exist" in err
    file = write_rows(tmp_path / "a.jsonl", {"text": "a"})
    code, _, err = check(file, "--model", tmp_path)
    assert (code, "it has no tokenizer.json" in err) == (13, True)
    code, _, err = check(file, "--model", light_model, "--train-on-inputs", "Never")
    assert (code, "trainOnInputs is Never" in err) == (10, True)
    (tmp_path / "bad.jinja").write_text("{% if %}")
    code, _, err = check(file, "--model", light_model, "--chat-template", tmp_path / "bad.jinja")
    assert (code, "data.chatTemplate: line 1" in err) == (10, True)
    code, _, err = check(file, "--model", "file:///gone")
    assert code == 13


@pytest.mark.parametrize("given_", [["--max-seq-length", "0"], ["--method", "dpo"], ["--chat-template", "gone"], []])
def test_a_call_that_means_nothing_is_refused(given_, capsys):
    with pytest.raises(SystemExit) as ended:
        entry.main(["check", *(["a.jsonl"] if given_ else []), *given_])
    assert ended.value.code == 2
    assert "usage: finetune-train check" in capsys.readouterr().err


def test_a_full_temporary_folder_is_told_as_such(check, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Seen, "add_row", full)
    code, out, err = check(write_rows(tmp_path / "a.jsonl", preference()), "--json")
    assert (code, out) == (22, "")
    assert err.startswith("no space is left at ")


@pytest.mark.parametrize("size", [0, 65_537])
def test_a_template_that_no_job_would_take_is_refused(size, tmp_path, capsys):
    (tmp_path / "a.jinja").write_text("a" * size)
    with pytest.raises(SystemExit) as ended:
        entry.main(["check", "a.jsonl", "--chat-template", str(tmp_path / "a.jinja")])
    assert ended.value.code == 2
    assert "must hold 1 to 65536 characters" in capsys.readouterr().err


def test_a_terminal_sees_how_far_it_is(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "PROGRESS_SECONDS", 0.0)
    real = command.Console
    monkeypatch.setattr(command, "Console", lambda **options: real(**options, force_terminal=True))
    _, _, err = check(write_rows(tmp_path / "a.jsonl", *(preference(str(n)) for n in range(50))))
    assert "50 rows" in err
    assert "100 %" in err


def test_real_rows_are_clean_but_for_those_that_repeat(check, tmp_path, light_model):
    rows = shared_preferences()
    file = write_rows(tmp_path / "real.jsonl", *rows)
    for method, columns in (("DPO", ["input", *OUTPUTS]), ("SFT", ["input", OUTPUTS[0]])):
        code, out, _ = check(file, "--model", light_model, "--method", method, "--max-seq-length", 100_000, "--json")
        report, seen = json.loads(out), set()
        said = [json.dumps([row[column] for column in columns]) for row in rows]
        repeated = [line for line, row in enumerate(said, start=1) if row in seen or seen.add(row)]
        assert (code, report["rows"], report["errors"]) == (0, len(rows), [])
        assert [(w["line"], w["code"]) for w in report["warnings"]] == [(line, "DuplicateRow") for line in repeated]


NOISE = 2**19
"""By which the peaks of two processes that do the same may differ."""
PEAK = """
import re, sys
from pathlib import Path
from finetune_trainer.__main__ import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""
ALONE = """
import json, sys
from finetune_trainer.__main__ import main
code, heavy = main(sys.argv[1:]), {"torch", "peft", "s3fs", "gcsfs", "azure", "aiohttp"}
print(json.dumps({"code": code, "heavy": sorted(heavy & sys.modules.keys())}), file=sys.stderr)
"""


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", *(b"{" for _ in range(5000)))
    piped = '{ "$0" -m finetune_trainer check "$1" --json; echo $? >"$1.code"; } | head -c 9'
    source = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        ["sh", "-c", piped, sys.executable, file],
        env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.stderr, (tmp_path / "rows.jsonl.code").read_text()) == ("", "11\n")


def test_from_the_hub_alone_and_without_torch(light_model, tmp_path):
    """A process of its own; of the model no weights are there to be asked for."""
    rows = json.dumps(preference()).encode()
    with serving() as hub:
        kept = {path.name: path.read_bytes() for path in light_model.iterdir() if path.suffix != ".safetensors"}
        hub.add("me/model", kept)
        hub.add("datasets/me/rows", {"train.jsonl": rows})
        source = os.pathsep.join(path for path in sys.path if path)
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": source, "PATH": ""}
        given = ["check", "hf://datasets/me/rows/train.jsonl", "--model", "me/model", "--json"]
        done = subprocess.run(
            [sys.executable, "-c", ALONE, *given],
            env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert json.loads(done.stderr.splitlines()[-1]) == {"code": 0, "heavy": []}
    assert json.loads(done.stdout)["tokens"]["preferred"]["max"] > 0


WORDS = [
    "input",
    "messages",
    "role",
    "content",
    "preferred_output",
    "non_preferred_output",
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "text",
    "tools",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "weight",
    "user",
    "assistant",
    "system",
    "tool",
    "type",
    "reasoning",
    "<|end|>",
]
WORDS += ["", "\ud83d", "\x00"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUES, "content": VALUES},
    optional={"tool_calls": VALUES, "reasoning": VALUES, "weight": VALUES, "name": VALUES},
)
MESSAGES = st.lists(MESSAGE, max_size=3) | VALUES
ROWS = st.one_of(
    st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=4),
    st.fixed_dictionaries(
        {"input": st.fixed_dictionaries({"messages": MESSAGES}), "preferred_output": MESSAGES,
         "non_preferred_output": MESSAGES}, optional={"weight": VALUES, "tools": VALUES}
    ),
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"tools": VALUES, "weight": VALUES}),
    st.fixed_dictionaries({"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}),
    st.fixed_dictionaries({"prompt": VALUES, "completion": VALUES}),
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS | VALUES, min_size=1, max_size=4), sft=st.booleans())
def test_no_row_brings_the_gate_down(check, light_model, tmp_path, rows, sft):
    """Whatever a line holds, the command ends with its own exit codes and a report that counts every line."""
    file = write_rows(tmp_path / "rows.jsonl", *(json.dumps(row).encode() for row in rows))
    options = ["--method", "SFT"] if sft else []
    code, out, _ = check(file, "--model", light_model, "--overlong", "Truncate", "--json", *options)
    report = json.loads(out)
    assert (code, report["rows"]) == (11 if report["errors"] else 0, len(rows))
    assert {error["line"] for error in report["errors"]} <= set(range(1, len(rows) + 1))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """The kernel's own peak of a process that reads ever more rows; `make bench-data` does the same to a million.

    Not getrusage's, which a process inherits from the one that started it.
    """
    peaks = []
    for count in (2_000, 20_000):
        file = tmp_path / f"{count}.jsonl"
        with file.open("w") as out:
            out.writelines(json.dumps(preference(f"question {number}")) + "\n" for number in range(count))
        source = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "check", str(file), "--json"],
            env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert json.loads(done.stdout)["rows"] == count, done.stderr
        peaks.append(int(done.stderr.splitlines()[-1]) * 1024)
    assert peaks[1] < 500 * 2**20
    assert peaks[1] - peaks[0] < 18_000 * 32 + NOISE
