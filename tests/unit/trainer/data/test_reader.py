"""Files of every kind give the same lines; a damaged one gives those before the damage, then where it is."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.gate import COLUMNS
from finetune_trainer.data.reader import DataFile
from finetune_trainer.data.rows import Problem
from rows import preference

ROWS = [preference(f"question {number} {os.urandom(40).hex()}") for number in range(2000)]
TEXT = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
DAMAGED, UNKNOWN = Problem("", Code.DAMAGED_FILE), Problem("", Code.UNKNOWN_FILE_KIND)


def parquet(rows=ROWS, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def read(tmp_path):
    def read(content: bytes, name: str = "data"):
        (tmp_path / name).write_bytes(content)
        return [(line.number, line.content) for line in DataFile(tmp_path / name, COLUMNS).lines()]

    return read


PACKED = {
    "plain": TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip in two members": gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]),
    "zstandard": zstandard.ZstdCompressor(write_checksum=True).compress(TEXT),
    "zstandard in two frames": zstandard.compress(TEXT[:1000]) + zstandard.compress(TEXT[1000:]),
    "zstandard after a frame to skip": b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc" + zstandard.compress(TEXT),
    "parquet": parquet(),
    "parquet in groups": parquet(row_group_size=7, compression="zstd"),
}


@pytest.mark.parametrize("content", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("name", ["data", "data.jsonl"])
def test_every_kind_gives_the_same_lines(read, content, name):
    assert read(content, name) == list(enumerate(ROWS, start=1))


def test_text_under_a_packed_name_is_text(read):
    assert read(TEXT, "data.jsonl.gz") == read(TEXT)
    assert read(b"", "data.jsonl.gz") == []


@pytest.mark.parametrize("kind", ["gzip", "zstandard", "zstandard in two frames"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_a_file_that_is_cut_off_gives_the_lines_before(read, kind, share):
    packed = PACKED[kind]
    lines = read(packed[: int(len(packed) * share)])
    number, last = lines.pop()
    assert (number, last) == (len(lines) + 1, DAMAGED)
    assert len(lines) > 100
    assert [content for _, content in lines[:-1]] == ROWS[: len(lines) - 1]


@pytest.mark.parametrize("kind", ["gzip", "zstandard", "parquet", "parquet in groups"])
def test_bytes_that_are_wrong_in_the_middle_are_a_finding(read, kind):
    packed = bytearray(PACKED[kind])
    middle = len(packed) // 2
    packed[middle : middle + 400] = b"\xff" * 400
    lines = read(bytes(packed))
    assert any(isinstance(content, Problem) for _, content in lines) or [row for _, row in lines] != ROWS
    assert lines[-1][1] == DAMAGED or kind.startswith("parquet")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1PAR1", PACKED["parquet"][:500], b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
def test_a_beginning_without_the_rest_is_damage(read, content):
    assert read(content) == [(1, DAMAGED)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"prompt,completion\na,b\n"),
        ("A.TSV", b"a\tb\n"),
        ("x", b"PK\x03\x04rest"),
        ("x", b"BZh91AY"),
        ("x.xlsx", b""),
    ],
)
def test_other_kinds_are_refused_in_one_line(read, name, content):
    assert read(content, name) == [(1, UNKNOWN)]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.zst"])
def test_a_packed_name_over_other_bytes_is_damage(read, name):
    assert read(b"\x00\x01\x02", name) == [(1, DAMAGED)]


def test_how_much_was_read_is_known(tmp_path):
    for name, content in PACKED.items():
        (tmp_path / "data").write_bytes(content)
        file = DataFile(tmp_path / "data", COLUMNS)
        assert file.share == 0.0
        shares = [file.share for _ in file.lines()]
        assert shares == sorted(shares), name
        assert 0 <= shares[0] <= shares[-1] <= 1, name


def test_a_file_that_is_gone_is_out_of_reach(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(DataFile(tmp_path / "gone", COLUMNS).lines())
