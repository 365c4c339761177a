"""data-report.json holds every finding; status gets the first errors."""

import io
import json

from finetune_api.findings import DataErrorCode as Code
from finetune_api.findings import DataWarningCode as Odd
from finetune_trainer.data.report import FileReport, Findings, write_reports
from finetune_trainer.data.rows import Problem


def test_all_errors_are_in_the_file_and_the_first_twenty_in_status():
    out = io.StringIO()
    with Findings("trainingFile") as findings:
        for line in range(1, 31):
            findings.errors(line, [Problem("a", Code.WRONG_TYPE), Problem("b", Code.EXTRA_COLUMN)])
            findings.warning(line, Odd.DUPLICATE_ROW)
        findings.write(out, {"format": "text", "rows": 40}, {"tokens": {}})
    written = json.loads(out.getvalue())
    assert list(written) == ["format", "rows", "errorCount", "errors", "warnings", "tokens"]
    assert (written["errorCount"], len(written["errors"]), len(written["warnings"])) == (60, 60, 30)
    assert written["errors"][1] == {
        "line": 1,
        "field": "b",
        "code": "ExtraColumn",
        "message": "the column is not part of the format: remove it, or set data.extraColumns to Ignore",
    }
    assert written["warnings"][-1] == {
        "line": 30, "code": "DuplicateRow", "message": "the row repeats an earlier one"
    }  # fmt: skip
    assert [(error.line, error.file) for error in findings.first] == [
        (line, "trainingFile") for line in range(1, 11) for _ in range(2)
    ]
    assert (findings.bad_rows, findings.warned) == (30, {Odd.DUPLICATE_ROW: 30})


def test_a_report_without_findings_is_json_too():
    out = io.StringIO()
    with Findings("x") as findings:
        findings.write(out, {}, {})
    assert json.loads(out.getvalue()) == {"errorCount": 0, "errors": [], "warnings": []}


def test_several_files_stand_beside_each_other():
    out = io.StringIO()
    with Findings("trainingFile") as one, Findings("validationFile") as other:
        other.errors(3, [Problem("", Code.INVALID_JSON)])
        write_reports(out, [FileReport(one, {"rows": 1}, {"tokens": {}}), FileReport(other, {"rows": 2}, {})])
    written = json.loads(out.getvalue())
    assert (written["errorCount"], written["trainingFile"]["errorCount"]) == (1, 0)
    assert (written["validationFile"]["rows"], written["validationFile"]["errors"][0]["line"]) == (2, 3)


def test_a_long_field_path_is_cut_to_what_status_takes():
    with Findings("trainingFile") as findings:
        findings.errors(1, [Problem("x" * 200, Code.WRONG_TYPE)])
    assert len(findings.first[0].field) == 128
