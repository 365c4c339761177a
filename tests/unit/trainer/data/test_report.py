"""data-report.json holds every error; status gets the first ones."""

import json

import pytest

from finetune_api.report import DataErrorCode as Code
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Problem


def test_all_errors_are_in_the_file_and_the_first_twenty_in_status(tmp_path):
    path = tmp_path / "data-report.json"
    with DataReport(path) as report:
        for line in range(1, 31):
            report.add("trainingFile", line, [Problem("a", Code.WRONG_TYPE), Problem("b", Code.EXTRA_COLUMN)])
        report.add("validationFile", 1, [Problem("", Code.INVALID_JSON)])
        report.summary = {"rows": 40}
        assert not path.exists()  # it takes its name when it is complete
    written = json.loads(path.read_text())
    assert len(written["errors"]) == 61
    assert (written["errorCount"], written["rows"]) == (31, 40)
    assert written["errors"][-1]["file"] == "validationFile"
    assert written["errors"][0]["message"] == "the field has the wrong type: see docs/data.md for the format"
    assert [error.line for error in report.first] == [line for line in range(1, 11) for _ in range(2)]
    assert report.bad_rows == {"trainingFile": 30, "validationFile": 1}


def test_a_report_without_errors_is_json_too(tmp_path):
    with DataReport(tmp_path / "r.json") as report:
        report.summary = {}
    assert json.loads((tmp_path / "r.json").read_text()) == {"errors": [], "errorCount": 0}


def test_a_long_field_path_is_cut_to_what_status_takes(tmp_path):
    with DataReport(tmp_path / "r.json") as report:
        report.add("trainingFile", 1, [Problem("x" * 200, Code.WRONG_TYPE)])
    assert len(report.first[0].field) == 128


def test_an_interrupted_report_leaves_the_old_one(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(KeyError), DataReport(path):
        raise KeyError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]
