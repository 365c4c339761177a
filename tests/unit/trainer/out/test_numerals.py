"""Numbers as people read them."""

from __future__ import annotations

import pytest

from finetune_trainer.out.numerals import aligned, counted, evenly, number, percent, signed, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.412345, "0.4123"),
        (-12.3456, "−12.35"),
        (0, "0"),
        (1e-17, "0"),
        (2e-5, "2e−5"),
        (1.25e-5, "1.25e−5"),
        (1234, "1,234"),
        (-1798.4, "−1,798"),
        (1234.0, "1,234"),
        (2e9, "2e9"),
        (99.996, "100.0"),
        (2.0, "2.000"),
    ],
)
def test_a_number_has_few_digits_and_a_true_minus(value, text):
    assert number(value) == text


def test_a_change_has_its_sign():
    assert [signed(v) for v in (1.316, -0.04, 0.0)] == ["+1.32", "−0.0400", "0"]


def test_a_column_has_its_points_below_each_other():
    assert [aligned(v, 3.2) for v in (3.2, -0.037, 0.0)] == ["+3.20", "−0.04", "+0.00"]


def test_labels_of_an_axis_have_as_many_decimals_as_tell_them_apart():
    assert evenly([0.0, 0.5, 1.0]) == ["0", "0.5", "1.0"]
    assert evenly([-3000.0, -2000.0]) == ["−3,000", "−2,000"]
    assert evenly([0.0, 5e-6, 1e-5]) == ["0", "5e−6", "1e−5"]
    assert evenly([0.7]) == ["0.700"]


def test_shares_sizes_and_counts_have_their_units():
    assert (percent(0.8125), percent(1.0)) == ("81.2 %", "100 %")
    assert [size(n) for n in (0, 1000, 160_768, 5 << 30)] == ["0 B", "1000 B", "157 KiB", "5 GiB"]
    assert (counted(1, "pair"), counted(1024, "pair")) == ("1 pair", "1,024 pairs")
