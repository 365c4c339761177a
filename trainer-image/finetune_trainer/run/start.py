"""Everything that a run needs before its first step, put together from the configuration and the prepared data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.method import MethodType
from finetune_api.report import FailureCode
from finetune_api.schedule import spaced
from finetune_api.trainer import TrainerConfig
from finetune_api.uris import parse_uri
from finetune_trainer.data.model import check_checkpoint
from finetune_trainer.data.prepared import TRAIN_FOLDER, VALIDATION_FOLDER, Prepared, load_prepared
from finetune_trainer.data.sources import FetchedModel, fetch_model
from finetune_trainer.data.tokens import TokenCache, open_cache
from finetune_trainer.failures import failed
from finetune_trainer.files import writing_to
from finetune_trainer.layout import Layout
from finetune_trainer.out.publish import Publisher, model_card
from finetune_trainer.run.rows import ConversationRows, MethodRows, PreferenceRows, row_widths
from finetune_trainer.step.levels import Choice, choose_level
from finetune_trainer.step.model import Policy, choose_device, load_policy
from finetune_trainer.step.packing import MicroBatchRows, Plan, pack
from finetune_trainer.step.recipe import Level
from finetune_trainer.step.reference import reference_scores
from finetune_trainer.step.weights import StartFolders
from finetune_trainer.volumes import locate

MAX_TOKENS = {"cpu": 4096, "cuda": 8192}
"""Most tokens of a micro-batch, by kind of device."""


@dataclass(frozen=True, slots=True)
class Validation:
    """Rows that are evaluated and never trained on."""

    rows: MethodRows
    batches: tuple[MicroBatchRows, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained on what, and where the result goes."""

    policy: Policy
    plan: Plan
    rows: MethodRows
    validation: Validation | None
    identity: str
    """Digest of everything that decides the result: a recovery state of another identity is of no use."""
    publisher: Publisher
    choice: Choice
    """How rows lie in a pass."""


def load_work(config: TrainerConfig, layout: Layout, before_each: Callable[[], None]) -> Work:
    """Load the starting weights, plan the steps and score the reference; `before_each` may raise to end the scoring.

    Raises:
        RunFailed: nothing is prepared, the weights are missing, changed or unsupported, no GPU, unknown modules, the
            reference cannot be written.
    """
    prepared = _prepared(layout)
    check_checkpoint(config.start, config.mounts)
    device = choose_device(config.gpus)
    fetched = fetch_model(config.start.model, config.mounts, config.offline, prepared.model_revision)
    start, hyper = _start_folders(config, fetched), config.hyperparameters
    policy = load_policy(start, config.training_kind, config.lora, hyper.seed, device)
    cache = open_cache(layout.prepared / TRAIN_FOLDER)
    choice = _level(config, policy, cache)
    max_tokens = MAX_TOKENS[device.type] if choice.level is not Level.SINGLE else 1
    plan = Plan(row_widths(cache, choice.level), config.batch_size, hyper.n_epochs, hyper.seed, max_tokens)
    identity = _identity(config, prepared, plan)
    method = _Method(config, policy, choice.level, layout.reference / identity, layout.uri, before_each)
    return Work(
        policy=policy,
        plan=plan,
        rows=method.rows(cache, plan.first_epoch(), TRAIN_FOLDER),
        validation=_validation(layout, prepared, method, max_tokens),
        identity=identity,
        publisher=_publisher(config, layout, prepared, start, plan),
        choice=choice,
    )


def _level(config: TrainerConfig, policy: Policy, cache: TokenCache) -> Choice:
    wanted = Level.PACKED if config.training_method.type is MethodType.SFT else Level.SHARED
    return choose_level(policy, wanted, int(row_widths(cache, Level.SINGLE).max()))


@dataclass(frozen=True, slots=True)
class _Method:
    """Makes the rows of the configured method, with their reference where it has one."""

    config: TrainerConfig
    policy: Policy
    level: Level
    folder: Path
    uri: str
    """URI of the output, named when no scores can be written."""
    before_each: Callable[[], None]

    def rows(self, cache: TokenCache, batches: Sequence[MicroBatchRows], name: str) -> MethodRows:
        method = self.config.training_method
        if method.type is MethodType.SFT:
            return ConversationRows(cache, self.level)
        if method.preference.reference_free:
            return PreferenceRows(cache, method.preference, None, self.level)
        with writing_to(self.uri):
            folder = self.folder / name
            scores = reference_scores(self.policy, batches, cache.pair, self.level, folder, self.before_each)
        return PreferenceRows(cache, method.preference, scores, self.level)


def _validation(layout: Layout, prepared: Prepared, method: _Method, max_tokens: int) -> Validation | None:
    if not prepared.validation_rows:
        return None
    cache = open_cache(layout.prepared / VALIDATION_FOLDER)
    batches = pack(range(len(cache)), row_widths(cache, method.level), max_tokens)
    return Validation(method.rows(cache, batches, VALIDATION_FOLDER), batches)


def _prepared(layout: Layout) -> Prepared:
    prepared = load_prepared(layout.prepared)
    if prepared is None:
        problem = "the data is not prepared: run `finetune-train prepare` with the same configuration first"
        raise failed(FailureCode.CONFIG_INVALID, field="prepared", problem=problem)
    return prepared


def _start_folders(config: TrainerConfig, fetched: FetchedModel) -> StartFolders:
    parts = parse_uri(config.start.model)
    on_hub = parts.scheme == "hf"
    return StartFolders(
        base=fetched.path,
        base_uri=config.start.model,
        base_name=parts.root if on_hub else config.start.model,
        base_revision=fetched.revision,
        adapter=locate(config.start.adapter, config.mounts) if config.start.adapter else None,
    )


def _identity(config: TrainerConfig, prepared: Prepared, plan: Plan) -> str:
    decides = {"start", "training_method", "training_kind", "lora", "hyperparameters", "evaluation", "gpus"}
    parts = [
        config.model_dump(mode="json", include=decides),
        config.checkpointing.n_checkpoints,
        prepared.key,
        plan.identity,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _publisher(config: TrainerConfig, layout: Layout, prepared: Prepared, start: StartFolders, plan: Plan) -> Publisher:
    resolved = prepared.resolved
    files = {"trainingFile": resolved.training_file, "validationFile": resolved.validation_file}
    digests = {name: file.sha256 for name, file in files.items() if file}
    return Publisher(
        config=config,
        layout=layout,
        tokenizer=start.base,
        card=model_card(config, start.base_name, start.base_revision, digests),
        planned=spaced(config.checkpointing.n_checkpoints, plan.total_steps),
    )
