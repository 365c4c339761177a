"""docs/data.md is true: its examples are good rows and its table has every code."""

import json
import re
from pathlib import Path

from finetune_api.report import DataErrorCode
from finetune_trainer.data.gate import check_row, format_of

PAGE = (Path(__file__).parents[4] / "docs/data.md").read_text()


def test_the_examples_are_good_rows():
    rows = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    assert [format_of(row, None) for row in rows] == ["preference", "conversation"]
    assert [check_row(row, format_of(row, None)) for row in rows] == [[], []]


def test_every_code_is_explained():
    assert re.findall(r"^\| ([A-Z]\w+) \|", PAGE, re.MULTILINE) == [code.value for code in DataErrorCode]
