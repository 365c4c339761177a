"""report.json: comes back as it was written, or says why not."""

from __future__ import annotations

import json

import pytest

from finetune_trainer.out.facts import Facts, NoFacts, Passage, Sample, read_facts
from reports import answer, facts, pair


def test_facts_come_back(tmp_path):
    told = facts((pair(1, -0.5, "a < b & \u202e"),))
    (tmp_path / "report.json").write_text(json.dumps(told.to_json()))
    assert read_facts(tmp_path) == told


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("{", "is not what this version writes")])
def test_without_them_it_says_why(tmp_path, text, why):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(NoFacts, match=why):
        read_facts(tmp_path)


def test_the_gain_is_that_of_the_margin_or_of_an_answer_a_token():
    assert pair(1, 0.5).gain == 0.5
    assert pair(1, None).gain is None
    alone = Sample(line=1, prompt=Passage(text=""), answers=(answer(before=-8, after=-4, tokens=8),))
    assert alone.gain == 0.5
    assert alone.model_copy(update={"answers": (answer(before=None),)}).gain is None


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Facts.model_validate({**facts().to_json(), "samples": [{**pair().to_json(), "marginAfter": float("nan")}]})
