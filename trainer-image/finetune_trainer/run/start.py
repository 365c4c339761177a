"""Everything that a run needs before its first step, put together from the configuration and the prepared data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.failures import FailureCode
from finetune_api.method import MethodType
from finetune_api.report import WarningCode
from finetune_api.schedule import spaced
from finetune_api.trainer import TrainerConfig
from finetune_api.uris import parse_uri
from finetune_trainer.data.model import check_checkpoint
from finetune_trainer.data.prepared import TRAIN_FOLDER, VALIDATION_FOLDER, Prepared, cache_digests, load_prepared
from finetune_trainer.data.sources import FetchedModel, fetch_checkpoint, fetch_model
from finetune_trainer.data.tokens import open_cache
from finetune_trainer.failures import failed
from finetune_trainer.files import writing_to
from finetune_trainer.layout import Layout
from finetune_trainer.out.card import Card
from finetune_trainer.out.publish import Publisher
from finetune_trainer.run.merging import Merging, prepare_merging
from finetune_trainer.run.rows import ConversationRows, MethodRows, PreferenceRows
from finetune_trainer.run.samples import Samples
from finetune_trainer.run.telling import Teller
from finetune_trainer.step.fitting import Fitter
from finetune_trainer.step.levels import Choice, choose_level, slower
from finetune_trainer.step.memory import weights_fit
from finetune_trainer.step.model import Policy, choose_device, load_policy
from finetune_trainer.step.packing import Plan
from finetune_trainer.step.pixels import ImageProcessor
from finetune_trainer.step.ranks import ALONE, Ranks
from finetune_trainer.step.recipe import Level, Recipe
from finetune_trainer.step.reference import reference_scores
from finetune_trainer.step.rehearsal import Rehearsal, most_tokens
from finetune_trainer.step.weights import StartFolders, vision_of

VALIDATION_GROUP = 256
"""Validation rows that are evaluated together, and that may share a micro-batch."""


@dataclass(frozen=True, slots=True)
class Validation:
    """Rows that are evaluated and never trained on."""

    rows: MethodRows
    groups: tuple[range, ...]
    """Rows that may share a micro-batch, the same in every evaluation as in the reference."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained on what, and where the result goes."""

    fitter: Fitter
    plan: Plan
    rows: MethodRows
    validation: Validation | None
    publisher: Publisher | None
    """None: another process publishes."""
    merging: Merging | None
    """How the final adapter is merged into its base, where the job asks for that."""

    @property
    def policy(self) -> Policy:
        """What is trained."""
        return self.fitter.policy

    @property
    def samples(self) -> Samples:
        """The rows that the report shows: held-out ones where there are any."""
        return Samples(self.validation.rows, True) if self.validation else Samples(self.rows, False)


def verified(layout: Layout, ranks: Ranks = ALONE) -> Prepared:
    """What prepare left, its token caches unchanged since. One process of each pod fetches it for the others there.

    Raises:
        RunFailed: ConfigInvalid: nothing is prepared, or a cache is another one than prepare wrote.
    """
    if ranks.local == 0:
        layout.mirror.fetch_folder(layout.prepared)
    ranks.wait()
    prepared = load_prepared(layout.prepared)
    if prepared is None:
        problem = "the data is not prepared: run `finetune-train prepare` with the same configuration first"
        raise failed(FailureCode.CONFIG_INVALID, field="prepared", problem=problem)
    found = cache_digests(layout.prepared)
    changed = sorted(file for file, digest in prepared.digests.items() if found.get(file) != digest)
    if changed:
        problem = f"{changed[0]} is not what prepare wrote: run `finetune-train prepare` again"
        raise failed(FailureCode.CONFIG_INVALID, field="prepared", problem=problem)
    return prepared


def identity_of(config: TrainerConfig, prepared: Prepared) -> str:
    """Digest of everything that decides the result: a recovery state of another identity is of no use."""
    decides = {"start", "training_method", "training_kind", "lora", "hyperparameters", "evaluation", "gpus"}
    parts = [
        config.model_dump(mode="json", include=decides),
        config.checkpointing.n_checkpoints,
        config.batch_size,
        prepared.key,
        *["train_vision"] * config.train_vision,  # where it is false, what an older version has saved is of use
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan_of(config: TrainerConfig, prepared: Prepared) -> Plan:
    """Which rows form which step."""
    hyper = config.hyperparameters
    return Plan(prepared.rows, config.batch_size, hyper.n_epochs, hyper.seed)


def load_work(
    config: TrainerConfig,
    layout: Layout,
    prepared: Prepared,
    stored: Recipe | None,
    teller: Teller,
    before_each: Callable[[], None],
    ranks: Ranks = ALONE,
) -> Work:
    """Load the starting weights, find a recipe by which every row fits into memory, and score the reference.

    Args:
        stored: the recipe by which an earlier process of this run computed.
        before_each: called before each micro-batch; may raise to end the scoring.
        ranks: the processes that train as one.

    Raises:
        RunFailed: the weights are missing, changed or unsupported, no GPU, unknown modules, layers that cannot be
            merged though they shall be, too little memory, the reference cannot be written.
    """
    check_checkpoint(config.start, config.mounts)
    device = choose_device(config.gpus, ranks.local)
    fetched = fetch_model(
        config.start.model,
        config.mounts,
        config.offline or config.shared_cache,
        prepared.model_revision,
        code=config.allow_remote_code,
    )
    start = _start_folders(config, fetched)
    with weights_fit(device):
        seed, vision = config.hyperparameters.seed, config.train_vision
        policy = load_policy(start, config.training_kind, config.lora, seed, device, ranks, vision)
        rows = _rows(config, layout, TRAIN_FOLDER, start)
        held_out = _rows(config, layout, VALIDATION_FOLDER, start) if prepared.validation_rows else None
        merging = prepare_merging(config, layout, policy, start, rows.cache)
        choice = _level(policy, [rows, held_out] if held_out else [rows], teller)
        policy = choice.policy
        recipe = _recipe(config, policy, rows, choice.level, stored, teller)
        fitter = Fitter(policy, recipe, lambda said: teller.warn(WarningCode.MICRO_BATCH_HALVED, said, teller.step))
        plan = plan_of(config, prepared)
        folder = layout.reference / _reference_key(config, prepared, policy)
        reference = _Reference(fitter, folder, layout, teller, before_each)
        return Work(
            fitter=fitter,
            plan=plan,
            rows=reference.scored(rows, plan.first_epoch(), TRAIN_FOLDER),
            validation=_validation(held_out, reference) if held_out else None,
            publisher=_publisher(config, layout, prepared, start, plan, vision_of(policy.base.causal) is not None)
            if ranks.first
            else None,
            merging=merging,
        )


def _rows(config: TrainerConfig, layout: Layout, folder: str, start: StartFolders) -> MethodRows:
    """The rows of a file as the configured method sees them, without a reference."""
    cache, method = open_cache(layout.prepared / folder), config.training_method
    see = ImageProcessor(start.base) if cache.images else None
    if method.type is MethodType.SFT:
        return ConversationRows(cache, see)
    return PreferenceRows(cache, method.preference, None, see)


def _level(policy: Policy, files: Sequence[MethodRows], teller: Teller) -> Choice:
    """The fastest level that the model can do on rows as long as these."""
    longest = max(int(rows.widths(Level.SINGLE).max()) for rows in files)
    wanted = Level.SHARED if files[0].pairs else Level.PACKED
    if any(rows.cache.images for rows in files):
        teller.warn(WarningCode.SHARED_PREFIX_OFF, slower(Level.SINGLE, "its rows have images"))
        wanted = Level.SINGLE
    choice = choose_level(policy, wanted, longest, most_tokens(policy.device))
    levels = list(Level)
    agreed = levels[policy.ranks.most(levels.index(choice.level))]
    if policy.ranks.any(agreed is not choice.level):  # all of them again: spread weights are whole only together
        choice = choose_level(policy, agreed, longest, most_tokens(policy.device))
    if choice.problem:
        teller.warn(WarningCode.SHARED_PREFIX_OFF, choice.sentence)
    return choice


def _recipe(
    config: TrainerConfig, policy: Policy, rows: MethodRows, level: Level, stored: Recipe | None, teller: Teller
) -> Recipe:
    """The stored recipe if it still fits model, device and memory, else a new one."""
    rehearsal = Rehearsal(policy, rows, config.batch_size, config.hyperparameters.packing)
    levels = list(Level)
    possible = stored is not None and levels.index(stored.level) >= levels.index(level)
    recipe = _agreed(rehearsal.fitting(stored) if stored and possible else rehearsal.plan(level), policy.ranks)
    if stored is not None and recipe != stored:
        message = f"what was planned before the restart does not fit any more: {stored} before, {recipe} from now on"
        teller.warn(WarningCode.RESUME_REPLANNED, message)
    return recipe


def _agreed(recipe: Recipe, ranks: Ranks) -> Recipe:
    """The recipe by which it fits on every process."""
    return replace(
        recipe,
        max_tokens=-ranks.most(-recipe.max_tokens),
        checkpointing=ranks.any(recipe.checkpointing),
        split=ranks.any(recipe.split),
    )


def _reference_key(config: TrainerConfig, prepared: Prepared, policy: Policy) -> str:
    """Digest of everything that decides the scores but the recipe, which changes them by rounding at most."""
    start = config.start.model_dump(mode="json")
    parts = [prepared.key, prepared.model_revision, start, str(policy.base.causal.dtype), policy.device.type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Reference:
    """Gives rows the scores of the starting weights, where their objective compares with them."""

    fitter: Fitter
    folder: Path
    layout: Layout
    teller: Teller
    before_each: Callable[[], None]

    def scored(self, rows: MethodRows, groups: Sequence[Sequence[int]], name: str) -> MethodRows:
        """`rows` with their scores; rows that share a group may share a micro-batch."""
        if isinstance(rows, ConversationRows) or rows.objective.reference_free:
            return rows
        ranks, mirror = self.fitter.policy.ranks, self.layout.mirror
        with writing_to(self.layout.uri):
            if ranks.first:
                mirror.fetch_folder(self.folder / name)
            scores = reference_scores(
                rows.cache.pair,
                groups,
                lambda some: self.fitter.scores(rows, some, self.before_each),
                self.folder / name,
                self.teller.scoring,
                self.fitter.policy.base.uri,
                "trainingFile" if name == TRAIN_FOLDER else "validationFile",
                ranks,
                mirror.put_file,
            )
        return replace(rows, reference=scores)


def _validation(rows: MethodRows, reference: _Reference) -> Validation:
    count = len(rows.cache)
    groups = tuple(range(first, min(first + VALIDATION_GROUP, count)) for first in range(0, count, VALIDATION_GROUP))
    return Validation(reference.scored(rows, groups, VALIDATION_FOLDER), groups)


def _start_folders(config: TrainerConfig, fetched: FetchedModel) -> StartFolders:
    parts = parse_uri(config.start.model)
    on_hub = parts.scheme == "hf"
    return StartFolders(
        base=fetched.path,
        base_uri=config.start.model,
        base_name=parts.root if on_hub else config.start.model,
        base_revision=fetched.revision if on_hub else None,
        adapter=fetch_checkpoint(config.start.adapter, config.mounts) if config.start.adapter else None,
        remote_code=config.allow_remote_code,
    )


def _publisher(
    config: TrainerConfig, layout: Layout, prepared: Prepared, start: StartFolders, plan: Plan, vision: bool
) -> Publisher:
    resolved = prepared.resolved
    files = {"trainingFile": resolved.training_file, "validationFile": resolved.validation_file}
    digests = {name: file.sha256 for name, file in files.items() if file}
    return Publisher(
        config=config,
        layout=layout,
        tokenizer=start.tokenizer,
        card=Card(config, start.base_name, start.base_revision, digests, vision),
        planned=spaced(config.checkpointing.n_checkpoints, plan.total_steps),
    )
