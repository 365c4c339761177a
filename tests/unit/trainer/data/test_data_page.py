"""docs/data.md is true: its examples are good rows and its tables have every code."""

import json
import re
from pathlib import Path

from finetune_api.findings import DataErrorCode, DataWarningCode
from finetune_trainer.data.gate import SHAPES, check_row, shape_of

PAGE = (Path(__file__).parents[4] / "docs/data.md").read_text()


def test_the_examples_are_good_rows_of_every_format():
    rows = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    assert {shape_of(row, None) for row in rows} == set(SHAPES)
    assert [check_row(row, shape_of(row, None)) for row in rows] == [[]] * len(rows)


def test_every_code_is_explained():
    assert re.findall(r"^\| ([A-Z]\w+) \|", PAGE, re.MULTILINE) == [code.value for code in DataErrorCode]
    assert re.findall(r"^\| `([A-Z]\w+)` \|", PAGE, re.MULTILINE) == [code.value for code in DataWarningCode]
