"""Every method has its example: each option of each objective is used in one, and the page lists all of them."""

from __future__ import annotations

import re

from finetune_api.job import JobSpec, job_from
from finetune_api.method import Dpo, TrainingKind
from manifests import EXAMPLES, ROOT, read

JOBS = [document for path in EXAMPLES for document in read(path) if document["kind"] == "FineTuneJob"]
SPECS: list[JobSpec] = [job_from(document).spec for document in JOBS]


def test_every_option_of_a_preference_objective_has_an_example() -> None:
    used = {name for spec in SPECS if spec.training_method.dpo for name in spec.training_method.dpo.model_fields_set}
    assert used == set(Dpo.model_fields)


def test_both_methods_and_both_kinds_of_training_have_one() -> None:
    assert {spec.training_method.type for spec in SPECS} == {"SFT", "DPO"}
    assert {spec.training_type.type for spec in SPECS} == set(TrainingKind)


def test_the_page_lists_every_file() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    listed = set(re.findall(r"\]\(([a-z/-]+\.yaml)\)", page))
    assert {path.name for path in EXAMPLES} <= listed
