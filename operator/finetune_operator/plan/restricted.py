"""Whether what a runtime's podTemplate adds keeps the pods within the Pod Security Standard "restricted".

Most of the standard is out of the template's reach, because it has no such field. What is left is refused here, with a
sentence, and not by a namespace that enforces the standard: that would only leave a Job without pods.
"""

from __future__ import annotations

from finetune_api.runtime import PodTemplate, RuntimeSpec
from finetune_api.status import Reason
from finetune_operator.plan.state import Manifest, Refusal

SOURCES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
"""The kinds of volumes that the standard admits."""
PROFILES = {
    "container.apparmor.security.beta.kubernetes.io/": ("runtime/default",),
    "container.seccomp.security.alpha.kubernetes.io/": ("runtime/default", "docker/default"),
    "seccomp.security.alpha.kubernetes.io/pod": ("runtime/default", "docker/default"),
}
"""Annotations that choose a profile, by prefix, and the values that leave the runtime's own."""


def template_refused(name: str, runtime: RuntimeSpec) -> Refusal | None:
    """The refusal of every job on a runtime whose podTemplate asks for more than the standard admits."""
    template = runtime.pod_template
    wrong = next((said for said in (*_volumes(template), *_annotations(template)) if said), None)
    if wrong is None:
        return None
    return Refusal(
        Reason.INVALID_SPEC,
        f"FineTuneRuntime {name}: podTemplate.{wrong}; pods of jobs meet the Pod Security Standard restricted",
    )


def _volumes(template: PodTemplate) -> list[str]:
    return [f"volumes[{at}] {wrong}" for at, v in enumerate(template.volumes) if (wrong := _of_volume(v))]


def _of_volume(volume: Manifest) -> str | None:
    others = sorted(volume.keys() - {"name"} - SOURCES)
    if others:
        admitted = ", ".join(sorted(SOURCES))
        return f"({volume.get('name')}) is a volume of kind {others[0]}: use one of {admitted}"
    if _has_token(volume.get("projected")):
        return f"({volume.get('name')}) has a service account token: leave it out, because pods call no API server"
    return None


def _has_token(projected: object) -> bool:
    """Whether a projected volume, whatever stands there, brings a token."""
    sources = projected.get("sources") if isinstance(projected, dict) else None
    return isinstance(sources, list) and any(isinstance(s, dict) and "serviceAccountToken" in s for s in sources)


def _annotations(template: PodTemplate) -> list[str]:
    return [
        f"annotations[{key}] is {value}: leave it out, or use {admitted[0]}"
        for key, value in sorted(template.annotations.items())
        for prefix, admitted in PROFILES.items()
        if key.startswith(prefix) and value not in admitted
    ]
