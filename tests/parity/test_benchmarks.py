"""The benchmarks run, in small, and their arms agree on the loss, TRL's among them."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def page(monkeypatch, script, out, *arguments):
    """What a benchmark writes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert end.value.code == 0
    return out.read_text()


def test_on_a_cpu(monkeypatch, tmp_path, capfd):
    text = page(monkeypatch, "cpu.py", tmp_path / "cpu.md", "--small", "--rounds", "1", "--repeats", "1")
    assert "| (60, 4, 4) | 1.88 |" in text
    assert "losses differ" not in capfd.readouterr().err


def test_what_runs_on_a_gpu(monkeypatch, tmp_path):
    sizes = ("--model", "tiny", "--shrink", "64", "--warm-up", "0", "--steps", "1")
    text = page(monkeypatch, "gpu.py", tmp_path / "gpu.md", "--device", "cpu", "--only", "W4", *sizes)
    losses = [float(line.split("|")[-2]) for line in text.splitlines() if re.match(r"\| (TRL|ours|\+|the same)", line)]
    assert len(losses) == 8
    assert losses == pytest.approx([losses[0]] * 8, abs=2e-5)
    chart = ElementTree.parse(tmp_path / "gpu.svg")
    assert len(chart.findall("{*}rect")) == 8
