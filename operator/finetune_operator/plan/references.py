"""Whether everything that a job names may be used and is there: the runtime, the weights, claims, config maps."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job import FineTuneJob
from finetune_api.resolve import ResolvedValues, resolve
from finetune_api.runtime import FineTuneRuntime, RuntimeSpec
from finetune_api.status import Reason
from finetune_operator.plan.access import Use, namespace_refused, use_refused, uses_of
from finetune_operator.plan.claims import cannot_share, claim_template, is_made
from finetune_operator.plan.limits import deadline_refused, model_limits_refused, size_refused
from finetune_operator.plan.restricted import template_refused
from finetune_operator.plan.size import output_uri, size_of
from finetune_operator.plan.state import Observed, Refusal
from finetune_operator.plan.weights import Weights, weights_of
from finetune_operator.settings import Settings

CLAIM_TO_PASTE = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}
  namespace: {namespace}
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests:
      storage: 10Gi
"""


@dataclass(frozen=True, slots=True)
class Permitted:
    """A job that may run, if what it names is there."""

    runtime: FineTuneRuntime
    weights: Weights
    values: ResolvedValues
    uses: tuple[Use, ...]
    """Everything that its pods mount or fetch."""

    def roots(self, scheme: str) -> list[Use]:
        """The uses with that scheme."""
        return [use for use in self.uses if use.parts.scheme == scheme]


def permit(job: FineTuneJob, observed: Observed) -> Permitted | Refusal:
    """Check `job` against the runtime that it names; nothing here needs to exist but runtime and parent."""
    runtime = choose_runtime(job.spec.runtime, observed)
    if isinstance(runtime, Refusal):
        return runtime
    name, spec, namespace = runtime.metadata.name, runtime.spec, job.metadata.namespace or ""
    if refused := namespace_refused(job, name, spec.access) or template_refused(name, spec):
        return refused
    target = output_uri(job, spec)
    if target is None:
        message = f"output.uri is not set and FineTuneRuntime {name} has no spec.defaults.output.uri: set output.uri"
        return Refusal(Reason.INVALID_SPEC, message)
    named = uses_of(job, target)
    for use in named:
        if refused := use_refused(use, namespace, name, spec.access):
            return refused
    if spec.offline and (repo := job.spec.hf_repo) is not None:
        message = f"output.hfRepo is {repo}, and FineTuneRuntime {name} is offline: leave it out, or use another"
        return Refusal(Reason.SOURCE_NOT_ALLOWED, message)
    weights = weights_of(job, name, spec, observed.parent)
    if isinstance(weights, Refusal):
        return weights
    for use in weights.uses:
        if refused := use_refused(use, namespace, name, spec.access):
            return refused
    values = resolve(job.spec, weights.entry, weights.parent)
    refused = size_refused(size_of(job, spec), name, spec) or deadline_refused(job, name, spec)
    refused = refused or model_limits_refused(job, values, weights.entry, name)
    return refused or Permitted(runtime, weights, values, (*named, *_weight_files(weights), *_cache(name, spec)))


def choose_runtime(name: str | None, observed: Observed) -> FineTuneRuntime | Refusal:
    """The runtime with that name, or the only default one."""
    known = ", ".join(sorted(r.metadata.name for r in observed.runtimes)) or "none"
    if name is not None:
        if name in observed.broken_runtimes:
            return Refusal(Reason.INVALID_SPEC, f"FineTuneRuntime {name} is invalid: {observed.broken_runtimes[name]}")
        found = next((r for r in observed.runtimes if r.metadata.name == name), None)
        message = f"runtime is {name}, but there is no such FineTuneRuntime; known: {known}"
        return found or Refusal(Reason.RUNTIME_NOT_FOUND, message)
    defaults = [r for r in observed.runtimes if r.spec.default]
    if not defaults:
        message = f"runtime is not set and no FineTuneRuntime has spec.default true: set runtime; known: {known}"
        return Refusal(Reason.RUNTIME_NOT_FOUND, message)
    if len(defaults) > 1:
        both = ", ".join(sorted(r.metadata.name for r in defaults))
        message = f"runtime is not set and several FineTuneRuntimes have spec.default true ({both}): set runtime"
        return Refusal(Reason.RUNTIME_AMBIGUOUS, message)
    return defaults[0]


def missing(job: FineTuneJob, permitted: Permitted, observed: Observed, settings: Settings) -> Refusal | None:
    """The first thing that a permitted job needs and that is not there, or not fit for it."""
    namespace = job.metadata.namespace or ""
    spec = permitted.runtime.spec
    made = claim_template(job, spec, settings)
    for use in permitted.roots("pvc"):
        modes = observed.access_modes.get(use.parts.root, ())
        if use.parts.root not in observed.claims:
            if not is_made(use, permitted.uses, made):
                return _no_claim(use, namespace)
            modes = tuple((made or {})["spec"].get("accessModes", ()))
        if refused := cannot_share(use, modes, job, spec):
            return refused
    for use in permitted.roots("configmap"):
        if refused := _no_key(use, namespace, observed):
            return refused
    account = permitted.runtime.spec.service_account_name
    if account not in observed.service_accounts:
        message = (
            f"FineTuneRuntime {permitted.runtime.metadata.name} runs pods as service account {account}, which namespace"
            f" {namespace} does not have: kubectl create serviceaccount {account} -n {namespace}"
        )
        return Refusal(Reason.SERVICE_ACCOUNT_NOT_FOUND, message)
    return None


def _weight_files(weights: Weights) -> tuple[Use, ...]:
    """What a pod mounts for its weights, whether or not it needs an entry in access."""
    sources = [
        ("model", weights.model.source),
        ("model", weights.same_as),
        ("fromCheckpoint", weights.model.checkpoint),
    ]
    return tuple(Use(field, uri) for field, uri in sources if uri)


def _cache(name: str, runtime: RuntimeSpec) -> tuple[Use, ...]:
    return (Use(f"cache.uri of FineTuneRuntime {name}", runtime.cache.uri, write=True),) if runtime.cache else ()


def _no_claim(use: Use, namespace: str) -> Refusal:
    name = use.parts.root
    manifest = CLAIM_TO_PASTE.format(name=name, namespace=namespace)
    return Refusal(
        Reason.CLAIM_NOT_FOUND,
        f"{use.field} is {use.uri}, but namespace {namespace} has no PersistentVolumeClaim {name}."
        f" Create it, for example with:\n{manifest}",
    )


def _no_key(use: Use, namespace: str, observed: Observed) -> Refusal | None:
    name, key = use.parts.root, use.parts.path
    keys = observed.config_maps.get(name)
    if keys is None:
        message = (
            f"{use.field} is {use.uri}, but namespace {namespace} has no ConfigMap {name}:"
            f" kubectl create configmap {name} -n {namespace} --from-file={key}"
        )
        return Refusal(Reason.CONFIG_MAP_NOT_FOUND, message)
    if key in keys:
        return None
    known = ", ".join(sorted(keys)[:20]) or "none"
    message = f"{use.field} is {use.uri}, but ConfigMap {name} has no key {key}; its keys: {known}"
    return Refusal(Reason.CONFIG_MAP_NOT_FOUND, message)
