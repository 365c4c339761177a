"""Parquet: rows as JSON would have them, whatever the columns' types; columns of nobody are not read."""

import datetime
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.gate import COLUMNS
from finetune_trainer.data.parquet import ParquetRows, plain
from finetune_trainer.data.rows import Problem
from rows import conversation, user


def read(path):
    return [(line.number, line.content) for line in ParquetRows(path, COLUMNS).lines()]


def test_rows_of_a_data_frame_are_plain(tmp_path):
    """Nested columns of pandas hold arrays of numpy."""
    frame = pd.DataFrame(
        {
            "messages": [np.array(conversation("a", "b")["messages"], dtype=object)] * 2,
            "weight": np.array([0.5, 2], dtype=np.float32),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert rows[0] == (1, {**conversation("a", "b"), "weight": 0.5})
    assert type(rows[1][1]["weight"]) is float


def test_columns_of_nobody_are_named_but_not_read(tmp_path):
    when = pa.array([1, None], pa.timestamp("ns"))
    table = pa.table({"text": ["a", "b"], "when": when, "blob": [b"\xff", b"\xfe"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        (1, {"text": "a", "when": None, "blob": None}),
        (2, {"text": "b", "when": None, "blob": None}),
    ]
    pq.write_table(table.select(["when"]), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == [(1, {"when": None}), (2, {"when": None})]


def test_token_ids_are_refused_by_name(tmp_path):
    pq.write_table(pa.table({"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [(1, Problem("input_ids", Code.PRETOKENISED))]


def test_a_file_without_rows_has_none(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == []
    assert ParquetRows(tmp_path / "a.parquet", COLUMNS).share == 0.0


def test_what_json_does_not_have_is_text():
    day, name = datetime.date(2026, 1, 2), uuid.UUID(int=7)
    assert plain({"a": [day, Decimal("1.5")], "b": (b"x", None), "c": {1: True}, "d": name}) == {
        "a": ["2026-01-02", "1.5"],
        "b": ["x", None],
        "c": {"1": True},
        "d": str(name),
    }


def test_keys_that_only_other_rows_have_are_absent(tmp_path):
    """A column's structures have the keys of all of them, null where a row has none: a call of one tool would be
    rendered with the arguments of every other."""
    rows = [{"messages": [user("a"), calling({"at": "sky"})]}, {"messages": [user("b"), calling({"word": "sky"})]}]
    pq.write_table(pa.Table.from_pylist([*rows, {"messages": None}]), tmp_path / "a.parquet")
    assert [row for _, row in read(tmp_path / "a.parquet")] == [*rows, {"messages": None}]


def calling(arguments):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": arguments}}]}


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_a_row_that_is_no_utf8_does_not_hide_the_rest(tmp_path, kind):
    raw = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary())
    column = pa.Array.from_buffers(kind, len(raw), raw.buffers())
    pq.write_table(pa.table({"text": column, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        (1, {"text": "a", "id": None}),
        (2, Problem("", Code.INVALID_UTF8)),
        (3, {"text": "c", "id": None}),
    ]
