"""The token cache gives back what was written, row by row, for both kinds."""

import numpy as np
import pytest

from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache


def ids(*values):
    return np.array(values, dtype=np.int32)


def test_pairs_come_back_with_their_parts(tmp_path):
    rows = [Pair(3, ids(1, 5), ids(7, 2), ids(8, 9, 2)), Pair(11, ids(1), ids(4), ids(6, 2))]
    assert write_cache(tmp_path / "c", CacheKind.PREFERENCE, iter(rows)) == 2
    cache = open_cache(tmp_path / "c")
    assert (cache.kind, len(cache), cache.lengths.tolist()) == (CacheKind.PREFERENCE, 2, [7, 4])
    for found, written in zip((cache[0], cache[1]), rows, strict=True):
        assert found.line == written.line
        for part in ("prompt", "preferred", "non_preferred"):
            assert getattr(found, part).tolist() == getattr(written, part).tolist()
            assert getattr(found, part).dtype == np.int32


def test_conversations_come_back_with_their_targets(tmp_path):
    rows = [
        Conversation(1, ids(1, 2, 3), np.array([False, True, True])),
        Conversation(2, ids(9), np.array([False])),
    ]
    write_cache(tmp_path / "c", CacheKind.CONVERSATION, rows)
    cache = open_cache(tmp_path / "c")
    assert cache.lengths.tolist() == [3, 1]
    assert [cache[i].tokens.tolist() for i in range(2)] == [[1, 2, 3], [9]]
    assert cache[0].targets.tolist() == [False, True, True]
    assert cache[0].targets.dtype == np.bool_


def test_a_cached_row_cannot_be_written(tmp_path):
    write_cache(tmp_path / "c", CacheKind.PREFERENCE, [Pair(1, ids(1), ids(2), ids(3))])
    with pytest.raises(ValueError, match="read-only"):
        open_cache(tmp_path / "c")[0].prompt[0] = 4


def test_the_header_holds_for_many_rows(tmp_path):
    rows = (Pair(line, ids(1), ids(2, line % 7), ids(3)) for line in range(1, 20_001))
    assert write_cache(tmp_path / "c", CacheKind.PREFERENCE, rows) == 20_000
    cache = open_cache(tmp_path / "c")
    assert cache[19_999].line == 20_000
    assert cache[19_999].preferred.tolist() == [2, 20_000 % 7]


def test_an_incomplete_cache_is_refused(tmp_path):
    write_cache(tmp_path / "c", CacheKind.PREFERENCE, [Pair(1, ids(1), ids(2), ids(3))])
    (tmp_path / "c" / "cache.json").unlink()
    with pytest.raises(FileNotFoundError):
        open_cache(tmp_path / "c")
