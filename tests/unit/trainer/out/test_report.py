"""The two files of a report, and the page made again from them."""

from __future__ import annotations

import pytest

from finetune_trainer.out.facts import NoFacts, read_facts
from finetune_trainer.out.report import rewrite_report, write_report
from reports import facts, pair, write_metrics


def test_the_page_can_be_made_again_from_files(tmp_path):
    write_metrics(tmp_path, 30, 10)
    write_report(tmp_path, facts((pair(1, -0.5),)))
    first = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    assert rewrite_report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_bytes() == first
    assert read_facts(tmp_path) == facts((pair(1, -0.5),))


def test_without_facts_there_is_no_page(tmp_path):
    with pytest.raises(NoFacts):
        rewrite_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
