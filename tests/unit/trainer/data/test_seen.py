"""Digests of rows and prompts, on disk."""

import tempfile

import pytest

from finetune_api.failures import FailureCode
from finetune_trainer.data import seen as seen_module
from finetune_trainer.data.seen import Seen
from finetune_trainer.failures import RunFailed


def test_rows_and_prompts_are_known_again_and_apart():
    with Seen() as seen:
        assert seen.add_row(b"a" * 16)
        assert not seen.add_row(b"a" * 16)
        assert seen.add_row(b"b" * 16)
        seen.add_prompt(b"p" * 16)
        seen.add_prompt(b"p" * 16)
        assert (seen.has_row(b"a" * 16), seen.has_row(b"p" * 16)) == (True, False)
        assert (seen.has_prompt(b"p" * 16), seen.has_prompt(b"a" * 16)) == (True, False)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(seen_module.tempfile, "tempdir", str(tmp_path))
    with Seen() as seen:
        seen.add_row(b"a" * 16)
        assert [path.name.startswith("finetune-seen-") for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such():
    with Seen() as seen:
        seen._table.execute("PRAGMA max_page_count=5")
        with pytest.raises(RunFailed) as full:
            list(map(seen.add_row, (number.to_bytes(16, "big") for number in range(10_000))))
    assert full.value.failure.code is FailureCode.STORAGE_FULL
    assert full.value.failure.args["uri"] == tempfile.gettempdir(), "and not the output"
