"""report.html: one page that tells how a run went, and needs nothing but itself.

Values in, text out. No script and no request: the page says so to the browser, which then holds it to that. Every text
of the data is escaped by the template's own rule, which knows no exception but what this package draws itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from finetune_api.advice import TO_DO
from finetune_api.metrics import METRICS
from finetune_trainer.out.card import method_name
from finetune_trainer.out.charts import Frame
from finetune_trainer.out.course import Course
from finetune_trainer.out.facts import Facts
from finetune_trainer.out.figures import figures, meaningful
from finetune_trainer.out.numerals import counted, number, size
from finetune_trainer.out.pairs import rows
from finetune_trainer.out.verdict import verdict

HERE = Path(__file__).parent
TEMPLATE, STYLE = "page.html.jinja", "page.css"
SHOWN_EVALUATIONS = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "kl", "nll")
LINES_OF_EVALUATIONS = 101


def page(facts: Facts, course: Course) -> str:
    """The page about the run of `facts`, whose curves are `course`."""
    method, frame = facts.config.training_method, _frame(facts, course)
    curves = meaningful(course, method)
    return _template().render(
        style=Markup((HERE / STYLE).read_text(encoding="utf-8")),
        facts=facts,
        job=facts.config.job,
        verdict=verdict(facts, course),
        summary=_summary(facts),
        figures=figures(curves, method, frame),
        to_do=TO_DO,
        missing=_missing_steps(frame.missing),
        rows=rows(facts),
        metrics=_metric_names(facts),
        evaluations=_evaluations(curves),
        settings=_settings(facts),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": size, "counted": counted}
    return environment.get_template(TEMPLATE)


def _frame(facts: Facts, course: Course) -> Frame:
    """The steps that were done, and those of them that have no finite loss or gradient."""
    last = int(max((curve.steps[-1] for curve in course.values()), default=1)) or 1
    best = next((c.step for c in facts.report.checkpoints if c.best), 0)
    done, loss, norm = (
        set(map(int, course[name].steps)) if name in course else set[int]()
        for name in ("train/learning_rate", "train/loss", "train/grad_norm")
    )
    return Frame(last, best, missing=tuple(sorted(done - (loss & norm))))


def _missing_steps(missing: tuple[int, ...]) -> str:
    if not missing:
        return ""
    shown = ", ".join(f"{step:,}" for step in missing[:10]) + (" and others" if len(missing) > 10 else "")
    return f"{counted(len(missing), 'step')} without finite numbers, marked at the axis: {shown}"


def _summary(facts: Facts) -> str:
    """What was trained on what, in a sentence without a verb."""
    config, data, resolved = facts.config, facts.data, facts.resolved
    lora = f"LoRA of rank {config.lora.rank}" if config.lora else "all weights"
    rows = counted(data.pairs, "pair") if data.pairs is not None else counted(data.rows, "row")
    epochs = counted(config.hyperparameters.n_epochs, "epoch")
    steps = counted(resolved.total_steps or 0, "step")
    vision = " and the vision encoder" if config.train_vision else ""
    images = f" with {counted(data.images, 'image')}" if data.images else ""
    what = f"{method_name(config.training_method)}, {lora}{vision}; {rows}{images}"
    return f"{what}, {epochs}, {steps} of {config.batch_size}"


def _metric_names(facts: Facts) -> list[str]:
    """Metrics of the checkpoints that stand in their table, in the order of the metric table."""
    order = [f"eval{m.status[0].upper()}{m.status[1:]}" for m in METRICS if m.log in SHOWN_EVALUATIONS[:3]]
    found = {name for checkpoint in facts.report.checkpoints for name in checkpoint.metrics}
    return [name for name in [*order, "mergeError"] if name in found]


def _evaluations(course: Course) -> list[list[str]]:
    """Every evaluation as a line of a table, its head first; of very many, those at equal distances."""
    names = [name for name in SHOWN_EVALUATIONS if f"eval/{name}" in course]
    by_step: dict[float, dict[str, float]] = {}
    for name in names:
        curve = course[f"eval/{name}"]
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            by_step.setdefault(step, {})[name] = value
    steps = sorted(by_step)
    if len(steps) > LINES_OF_EVALUATIONS:
        steps = [steps[k * (len(steps) - 1) // (LINES_OF_EVALUATIONS - 1)] for k in range(LINES_OF_EVALUATIONS)]
    lines = [[f"{s:,.0f}", *(number(by_step[s][n]) if n in by_step[s] else "" for n in names)] for s in steps]
    return [["step", *names], *lines] if lines else []


def _settings(facts: Facts) -> dict[str, dict[str, str]]:
    """The configuration by section, as a manifest calls its fields."""
    config, resolved = facts.config, facts.resolved
    parameters = resolved.model.parameters if resolved.model else None
    sections = {
        "start": {"model": facts.base, "revision": facts.base_revision, "parameters": parameters}
        | config.start.model_dump(mode="json", exclude={"model"}),
        "trainingMethod": config.training_method.model_dump(mode="json"),
        "trainingType": {"type": config.training_kind} | (config.lora.model_dump(mode="json") if config.lora else {}),
        "hyperparameters": config.hyperparameters.model_dump(mode="json")
        | {"batchSize": config.batch_size, "maxSeqLength": resolved.max_seq_length},
        "evaluation": config.evaluation.model_dump(mode="json"),
        "checkpointing": config.checkpointing.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json") | {"chatTemplate": _length(config.data.chat_template)},
        "versions": facts.versions,
    }
    return {section: _flat(values) for section, values in sections.items()}


def _length(template: str | None) -> str | None:
    return f"of the job, {len(template):,} characters" if template is not None else None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted names, as text; absent ones left out."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{name}"] = ", ".join(map(str, value))
        elif isinstance(value, bool):
            flat[f"{prefix}{name}"] = str(value).lower()
        elif value is not None:
            flat[f"{prefix}{name}"] = f"{value:g}" if isinstance(value, float) else str(value)
    return flat
