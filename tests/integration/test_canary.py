"""The value of a Secret is found nowhere but in the Secret: not in status, events, objects or the operator's log."""

from __future__ import annotations

import base64
import json

from finetune_api.failures import Failure, FailureCode
from kubelet import wait_for
from world import World, failing, script

CANARY = "hf_CanaryCanaryCanaryCanaryCanary4242"
REFERENCE = {"name": "finetune-hf", "key": "token"}
EVERYTHING = (
    "/apis/finetune.dev/v1alpha1/namespaces/{}/finetunejobs",
    "/apis/batch/v1/namespaces/{}/jobs",
    "/api/v1/namespaces/{}/pods",
    "/api/v1/namespaces/{}/events",
    "/api/v1/namespaces/{}/configmaps",
    "/api/v1/namespaces/{}/services",
    "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
)


def test_the_value_of_a_secret_stays_in_the_secret(world: World) -> None:
    secret = {"metadata": {"name": REFERENCE["name"]}, "stringData": {REFERENCE["key"]: CANARY}}
    world.api.post(f"/api/v1/namespaces/{world.namespace}/secrets", secret).must()
    world.apply("good", hfTokenSecretRef=REFERENCE)
    # A pod that says its token aloud, as a library's error might.
    said = {"uri": "hf://me/model", "problem": f"401 Client Error for Bearer {CANARY}\nType: Failed"}
    loud = failing(Failure(code=FailureCode.MODEL_UNSUPPORTED, args=said))
    world.apply("bad", script("bad", prepare=loud), hfTokenSecretRef=REFERENCE)
    world.wait("good", "Complete", seconds=120)
    failure = world.wait("bad", "Failed", reason="ModelUnavailable", seconds=120)
    assert failure["message"].endswith("401 Client Error for Bearer *** Type: Failed")
    pods = wait_for(lambda: world.pods("prepare"), "the pods")
    names = [e for pod in pods for e in pod["spec"]["containers"][0]["env"] if e["name"] == "HF_TOKEN"]
    assert names
    assert all(entry["valueFrom"] == {"secretKeyRef": REFERENCE} for entry in names)
    there = {path: json.dumps(world.api.get(path.format(world.namespace)).must()) for path in EVERYTHING}
    own_words = "/api/v1/namespaces/{}/pods"
    assert CANARY in there.pop(own_words)  # the kubelet keeps a termination message as the pod wrote it
    for value in (CANARY, base64.b64encode(CANARY.encode()).decode()):
        assert [path for path, text in there.items() if value in text] == []
        assert value not in world.operator.log.read_text()
