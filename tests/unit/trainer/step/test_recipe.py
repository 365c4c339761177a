"""The recipe: each easier one needs less memory, and there is an end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_trainer.step.recipe import ROW_ALONE, Level, Recipe

START = Recipe(Level.SHARED, 100)


def ladder(recipe, **about):
    """Every easier recipe after `recipe`, rows of 20 tokens failing: together as long as `max_tokens` is 30 or more."""
    found = []
    while (recipe := recipe.easier(*((5, 100) if recipe.max_tokens >= 30 else (1, 20)), **about)) is not None:
        found.append(recipe)
    return found


def test_smaller_micro_batches_come_first_then_what_costs_time():
    assert ladder(START, pairs=True, gradient=True) == [
        replace(START, max_tokens=50),
        replace(START, max_tokens=25),
        replace(START, max_tokens=25, checkpointing=True),
        replace(START, max_tokens=19, checkpointing=True, split=True),
    ]


def test_what_has_one_sequence_is_not_split():
    assert ladder(START, pairs=False, gradient=True)[-1] == replace(START, max_tokens=25, checkpointing=True)


def test_without_a_backward_pass_there_is_nothing_to_compute_again():
    assert ladder(START, pairs=True, gradient=False)[-1] == replace(START, max_tokens=19, split=True)


def test_a_shorter_row_that_does_not_fit_either_is_split_too():
    split = replace(START, max_tokens=19, checkpointing=True, split=True)
    shorter = split.easier(1, 15, pairs=True, gradient=True)
    assert shorter == replace(split, max_tokens=14)
    assert shorter.easier(1, 15, pairs=True, gradient=True) is None


def test_halving_ends_at_one_row_each():
    assert Recipe(Level.PACKED, ROW_ALONE).easier(2, 90, pairs=True, gradient=True).max_tokens == ROW_ALONE


def test_what_was_never_full_is_halved_from_what_was_in_it():
    assert START.easier(2, 60, pairs=True, gradient=True).max_tokens == 30


@pytest.mark.parametrize(("tokens", "split"), [(100, False), (101, True)])
def test_only_rows_that_are_too_long_to_share_are_split(tokens, split):
    assert replace(START, split=True).splits(tokens) is split
    assert not START.splits(tokens)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (START, "micro-batches of at most 100 tokens"),
        (Recipe(Level.SINGLE, ROW_ALONE), "micro-batches of one row each"),
        (
            replace(START, checkpointing=True, split=True),
            "micro-batches of at most 100 tokens with activations computed again, long pairs split",
        ),
    ],
)
def test_it_says_itself_in_words(recipe, words):
    assert str(recipe) == words
