"""The report of a run: report.json and report.html at its output, the second made of the first and metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_api.names import METRICS_FILE, REPORT_FACTS_FILE, REPORT_FILE
from finetune_trainer.files import write_atomically
from finetune_trainer.out.course import read_course
from finetune_trainer.out.facts import Facts, read_facts
from finetune_trainer.out.page import page


def write_report(folder: Path, facts: Facts) -> tuple[Path, Path]:
    """Leave `facts`, and the page that tells of them, in the output folder of a run; returns both files.

    Raises:
        OSError: a file cannot be written.
    """
    write_atomically(folder / REPORT_FACTS_FILE, json.dumps(facts.to_json(), ensure_ascii=False, indent=1) + "\n")
    return folder / REPORT_FACTS_FILE, _write_page(folder, facts)


def rewrite_report(folder: Path) -> Path:
    """Make the page of an output folder again, of what its files say; returns where it lies.

    Raises:
        NoFacts: the run has left no report.json.
        OSError: the page cannot be written.
    """
    return _write_page(folder, read_facts(folder))


def _write_page(folder: Path, facts: Facts) -> Path:
    write_atomically(folder / REPORT_FILE, page(facts, read_course(folder / METRICS_FILE)))
    return folder / REPORT_FILE
