"""The rows that the report shows: the same ones each time, at equal distances, scored as the evaluation scores them."""

from __future__ import annotations

import pytest
import torch

from finetune_api.method import Preference
from finetune_trainer.data.tokens import CacheKind, Pair, open_cache, write_cache
from finetune_trainer.run.rows import PreferenceRows
from finetune_trainer.run.samples import Samples


def samples(folder, count):
    some = torch.arange(1, 4, dtype=torch.int32).numpy()
    write_cache(
        folder / "cache", CacheKind.PREFERENCE, (Pair(line, some, some, some[:2]) for line in range(1, count + 1))
    )
    return Samples(PreferenceRows(open_cache(folder / "cache"), Preference(), None), held_out=True)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, [0]), (3, [0, 1, 2]), (10, list(range(10))), (25, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22])],
)
def test_they_stand_at_equal_distances(tmp_path, count, chosen):
    assert samples(tmp_path, count).chosen == chosen


def test_their_scores_are_taken_from_those_of_all_rows(tmp_path):
    sums = torch.arange(2 * 25, dtype=torch.float64)
    assert samples(tmp_path, 25).among(sums)[:6] == (0, 1, 4, 5, 10, 11)
