"""A tracker's process: rows in their order, whole lines alone, to the last word; nothing but words on its output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from finetune_api.tracking import Tracker, TrackerProblem, Tracking
from finetune_api.trainer import JobIdentity
from finetune_trainer.out.follow import BATCH_ROWS, follow
from finetune_trainer.out.lines import Row
from finetune_trainer.out.tracking import FINISHED, Said, Task
from held import single, tensorboard_series, written_series


class Notebook:
    """A run that keeps what it is given."""

    url = None

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.batches: list[int] = []
        self.closed: bool | None = None

    def send(self, rows: Sequence[Row]) -> None:
        self.batches.append(len(rows))
        self.steps += [row.step for row in rows]

    def close(self, finished: bool) -> None:
        self.closed = finished


def line(step: int) -> str:
    return json.dumps({"step": step, "train/loss": 1 / step}) + "\n"


def test_every_row_is_sent_once_in_order_and_those_that_come_later_too(tmp_path):
    path, run, said = tmp_path / "metrics.jsonl", Notebook(), []
    many = 2 * BATCH_ROWS + 1
    path.write_text("".join(map(line, range(1, many))))
    words = iter([None, None, FINISHED])

    def heard() -> str | None:
        with path.open("a") as file:
            file.write(line(many) if said else "")
        return next(words)

    follow(path, run, heard, said.append)
    assert run.steps == [*range(1, many), many, many]
    assert run.batches[:2] == [BATCH_ROWS, BATCH_ROWS]
    assert [word.sent for word in said if word.sent is not None] == [many - 1, many, many + 1]
    assert run.closed is True


def test_a_line_that_is_being_written_waits_until_it_is_whole(tmp_path):
    path, run = tmp_path / "metrics.jsonl", Notebook()
    path.write_text(line(1) + line(2)[:10])
    seen = []

    def heard() -> str | None:
        seen.append(list(run.steps))
        if len(seen) == 2:
            path.write_text(line(1) + line(2))
        return "" if len(seen) == 3 else None

    follow(path, run, heard, lambda _: None)
    assert seen == [[], [1], [1, 2]]
    assert run.closed is False, "an input that ends without the last word is no good end"


def started(task: Task, prefix: str = "pass") -> subprocess.CompletedProcess[str]:
    """The whole process, given its task and the last word at once."""
    code = f"import finetune_trainer.out.follow as f; {prefix}; f.main()"
    said = task.model_dump_json(exclude_none=True) + "\n" + FINISHED
    return subprocess.run([sys.executable, "-c", code], input=said, capture_output=True, text=True, timeout=60)


def task(folder, tracker=Tracker.TENSORBOARD) -> Task:
    return Task(
        tracker=tracker,
        job=JobIdentity(namespace="ml", name="dpo", uid="1"),
        tracking=Tracking.model_validate({"wandb": {}, "mlflow": {"trackingUri": "http://127.0.0.1:9"}}),
        metrics=str(folder / "metrics.jsonl"),
        output=str(folder),
        output_uri="pvc://claim/out",
    )


def test_what_a_client_prints_is_no_word_and_what_is_not_imported_costs_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(map(line, range(1, 10))))
    loud = "import atexit, sys; f.open_run = (lambda real: lambda *a: (print('hello'), real(*a))[1])(f.open_run)"
    loud += "; atexit.register(lambda: print('never'))"
    loud += "; f.signal.alarm = lambda s: print(sorted(m for m in ('torch', 'wandb', 'httpx2') if m in sys.modules))"
    ended = started(task(tmp_path), loud)
    assert ended.returncode == 0
    words = [Said.model_validate_json(text) for text in ended.stdout.splitlines()]
    assert words == [Said(url="pvc://claim/out/tensorboard"), Said(), Said(sent=9)]
    assert ended.stderr.splitlines() == ["hello", "[]"]
    assert tensorboard_series(tmp_path / "tensorboard") == single(written_series(tmp_path / "metrics.jsonl"))


def test_a_failure_is_the_last_word_and_an_exit_code(tmp_path):
    ended = started(task(tmp_path, Tracker.MLFLOW))
    assert ended.returncode == 1
    assert Said.model_validate_json(ended.stdout) == Said(problem=TrackerProblem.UNREACHABLE, detail="ConnectError")
    assert ended.stderr == ""
