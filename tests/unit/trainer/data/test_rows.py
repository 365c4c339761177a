"""Lines of a file: what is a row, what is none, and how both are counted."""

import io

import pytest

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data import rows
from finetune_trainer.data.rows import Problem, json_lines


def read(content):
    return [(line.number, line.content) for line in json_lines(io.BytesIO(content))]


def test_blank_lines_are_counted_but_are_no_rows():
    assert read(b'\n{"a": 1}\r\n  \t\n\n{"b": 2}') == [(2, {"a": 1}), (5, {"b": 2})]


def test_a_byte_order_mark_is_taken():
    assert read(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\n') == [(1, {"a": "é"})]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"a": "\xff"}', Code.INVALID_UTF8),
        ('{"a": "ü"}'.encode("utf-16"), Code.INVALID_UTF8),
        (b'{"a": 1', Code.INVALID_JSON),
        (b"{'a': 1}", Code.INVALID_JSON),
        (b'{"a": NaN}', Code.INVALID_JSON),
        (b'{"a": -Infinity}', Code.INVALID_JSON),
        (b'{"a": ' + b"9" * 5000 + b"}", Code.INVALID_JSON),
        (b"[" * 100_000, Code.INVALID_JSON),
        (b'{"a": 1} {"b": 2}', Code.INVALID_JSON),
        (b'[{"a": 1}]', Code.NOT_AN_OBJECT),
        (b'"text"', Code.NOT_AN_OBJECT),
        (b"null", Code.NOT_AN_OBJECT),
    ],
)
def test_a_line_that_is_no_row_has_a_code(line, code):
    assert read(line)[0] == (1, Problem("", code))


def test_a_line_too_long_for_memory_is_skipped_and_the_next_one_read(monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 16)
    content = b'{"a": 1}\n{"long": "' + b"x" * 100 + b'"}\n{"b": 2}\n'
    lines = list(json_lines(io.BytesIO(content)))
    assert [line.content for line in lines] == [{"a": 1}, Problem("", Code.INVALID_JSON), {"b": 2}]
    assert [line.number for line in lines] == [1, 2, 3]
