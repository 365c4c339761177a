"""What passes between a run and its trackers: plain words of bounded length, and a flat configuration."""

from __future__ import annotations

from finetune_api.tracking import TrackerProblem
from finetune_trainer.out.tracking import DETAIL_LENGTH, TrackerFailed, flat


def test_a_library_s_words_are_cut_put_on_one_line_and_without_a_token():
    said = TrackerFailed(TrackerProblem.REFUSED, "bad\nBearer abcdef " + "x" * 1000).detail
    assert said.startswith("bad Bearer *** xxx")
    assert len(said) == DETAIL_LENGTH


def test_an_error_without_words_is_named_by_its_kind():
    assert TrackerFailed(TrackerProblem.UNREACHABLE, TimeoutError()).detail == "TimeoutError"


def test_a_configuration_is_flat_and_what_is_absent_is_left_out():
    facts = {"a": {"b": {"c": 1.5, "d": None}, "e": ["x", 2]}, "f": True, "g": {}}
    assert flat(facts) == {"a.b.c": "1.5", "a.e": "['x', 2]", "f": "True"}
