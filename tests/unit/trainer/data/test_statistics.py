"""Lengths per side, exact, and what is said of a file."""

import numpy as np

from finetune_api.findings import DataWarningCode as Odd
from finetune_trainer.data.statistics import ODDITIES, Lengths, oddities
from finetune_trainer.data.tokens import Conversation, Pair


def ids(count):
    return np.zeros(count, np.int32)


def test_statistics_are_of_each_side():
    lengths = Lengths()
    for i in range(1, 101):
        lengths.add(Pair(i, ids(i), ids(2 * i), ids(1)))
    assert {side: (value.p50, value.p95, value.max) for side, value in lengths.statistics().items()} == {
        "prompt": (50, 95, 100),
        "preferred": (100, 190, 200),
        "nonPreferred": (1, 1, 1),
    }
    assert (lengths.tokens, lengths.longest) == (5050 + 10100 + 100, 300)


def test_a_percentile_is_numpy_s():
    sizes = np.random.default_rng(3).integers(1, 40, 997)
    lengths = Lengths()
    for size in sizes:
        lengths.add(Conversation(1, ids(size), np.zeros(size, np.bool_)))
    found = lengths.statistics()["sequence"]
    assert (found.p50, found.p95) == tuple(np.percentile(sizes, [50, 95], method="inverted_cdf"))


def test_without_rows_there_are_no_statistics():
    assert Lengths().statistics() == {}


def test_every_warning_has_a_sentence_for_the_file():
    assert set(ODDITIES) == set(Odd)
    told = list(oddities("trainingFile", 9, 128, dict.fromkeys(Odd, 3)))
    assert len(told) == len(Odd)
    assert told[0] == "3 of 9 rows of trainingFile are longer than maxSeqLength 128 and are left out"
    assert list(oddities("trainingFile", 9, 128, {Odd.TOO_LONG: 0})) == []
