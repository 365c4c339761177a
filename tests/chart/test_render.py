"""What the chart renders: a hardened operator with the rights of rbac.py, and a refusal of values that mean nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from apiserver import BINARIES
from finetune_operator.rbac import BY_DEFAULT, Scope, Switch, permissions
from finetune_operator.settings import Settings
from manifests import KINDS, ROOT, documents
from rendering import CHART, DIGEST, VALUES, of_kind, one, rendered, template

BAD: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 2}, "leaderElection"),
    ({"replicas": 11, "leaderElection": {"enabled": True}}, "/replicas"),
    ({"replicas": "1"}, "/replicas"),
    ({"leaderElection": {"enabled": True, "leaseDurationSeconds": 0}}, "/leaderElection/leaseDurationSeconds"),
    ({"leaderElection": {"enabled": True, "namespace": "other"}}, "namespace"),
    ({"settings": {"leaderElection": {"namespace": "a", "name": "b"}}}, "leaderElection"),
    ({"leaderElection": {"enabled": True, "leaseDurationSeconds": 9}}, "leaseDurationSeconds must be above"),
    ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "app.kubernetes.io/name"),
    ({"podLabels": {"app.kubernetes.io/instance": "mine"}}, "app.kubernetes.io/instance"),
    ({"podLabels": {"priority": 1}}, "/podLabels/priority"),
    ({"metrics": {"serviceMonitor": {"interval": "30"}}}, "/metrics/serviceMonitor/interval"),
    ({"metrics": {"serviceMonitor": {"enable": True}}}, "enable"),
    ({"metrics": {"prometheusRule": {"disruptionsPerHour": -1}}}, "/metrics/prometheusRule/disruptionsPerHour"),
    ({"metrics": {"dashboard": {"labels": {"grafana_dashboard": 1}}}}, "/metrics/dashboard/labels"),
    ({"podDisruptionBudget": {"minAvailable": 1}}, "minAvailable"),
    ({"networkPolicy": {"from": {}}}, "/networkPolicy/from"),
    ({"topologySpreadConstraints": [{"maxSkew": 1}]}, "/topologySpreadConstraints/0"),
    ({"extraEnv": [{"name": "FINETUNE_SETTINGS", "value": "/mine"}]}, "/extraEnv/0/name"),
    ({"extraEnv": [{"value": "no name"}]}, "/extraEnv/0"),
    ({"priorityClassName": None, "nodeSelector": ["pool"]}, "/nodeSelector"),
    ({"settings": {"workers": 0}}, "/settings/workers"),
    ({"settings": {"pollPeriod": 10}}, "pollPeriod"),
    ({"settings": {"healthPort": 0}}, "/settings/healthPort"),
    ({"settings": {"namespaces": "team-a"}}, "/settings/namespaces"),
    ({"settings": {"namespaces": ["team-*"]}}, "/settings/namespaces/0"),
    ({"settings": {"createDefaultRuntime": "yes"}}, "/settings/createDefaultRuntime"),
    ({"image": {"repository": ""}}, "/image/repository"),
    ({"image": {"digest": "latest"}}, "/image/digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
    ({"trainerImage": {"tag": "a b"}}, "/trainerImage/tag"),
    ({"crds": {"enabled": "true"}}, "/crds/enabled"),
    ({"securityContext": {"privileged": True}}, "securityContext"),
    *(({block: None}, f"missing property '{block}'") for block in ("admissionPolicies", "networkPolicy", "settings")),
]
every_value_set = pytest.mark.parametrize(
    "values", VALUES, ids=["default", "namespaces", "digest", "everything", "several"]
)


@every_value_set
def test_the_operator_is_hardened(values) -> None:
    pod = one(rendered(values), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} == {"configMap", "emptyDir"}


@every_value_set
def test_one_operator_at_a_time_asked_for_its_health(values) -> None:
    spec = one(rendered(values), "Deployment")["spec"]
    if values.get("leaderElection"):
        assert (spec["replicas"], spec["strategy"]["type"]) == (3, "RollingUpdate")
    else:
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (container,) = spec["template"]["spec"]["containers"]
    port = Settings.model_validate(values.get("settings", {})).health_port
    assert container["ports"] == [{"name": "health", "containerPort": port}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["resources"]["limits"]["memory"]


def granted(values: dict[str, Any]) -> dict[Scope, set[tuple[str, ...]]]:
    """The rules of the operator's roles by scope; those of Roles in several namespaces must be the same."""
    found: dict[Scope, set[tuple[str, ...]]] = {}
    for role in (*of_kind(rendered(values), "ClusterRole"), *of_kind(rendered(values), "Role")):
        if (scope := SCOPES.get((role["kind"], role["metadata"]["name"]))) is not None:
            rules = {_rule(**rule) for rule in role["rules"]}
            assert found.setdefault(scope, rules) == rules
    return found


def _rule(apiGroups: list[str], resources: list[str], verbs: list[str], **named: Any) -> tuple[str, ...]:  # noqa: N803
    assert named in ({}, {"resourceNames": ["finetune-operator"]})
    return (*apiGroups, *resources, *verbs)


def of_table(*switches: Switch) -> dict[Scope, set[tuple[str, ...]]]:
    """What rbac.py grants with these switches on."""
    found: dict[Scope, set[tuple[str, ...]]] = {}
    for permission in permissions(*switches):
        found.setdefault(permission.scope, set()).add(_rule(**permission.rule()))
    return found


SCOPES = {
    ("ClusterRole", "finetune-operator-cluster"): Scope.CLUSTER,
    ("ClusterRole", "finetune-operator"): Scope.JOBS,
    ("Role", "finetune-operator-jobs"): Scope.JOBS,
    ("Role", "finetune-operator-leader-election"): Scope.OWN,
}
SWITCHES: list[tuple[dict[str, Any], set[Switch], set[Switch]]] = [
    ({}, set(), set()),
    ({"settings": {"namespaces": ["team-a", "team-b"]}}, set(), {Switch.FIRST_RUNTIME}),
    ({"settings": {"namespaces": ["a"], "createDefaultRuntime": True}}, set(), {Switch.FIRST_RUNTIME}),
    ({"settings": {"createDefaultRuntime": False}}, set(), {Switch.FIRST_RUNTIME}),
    ({"settings": {"networkPolicy": {"enabled": False}}}, set(), {Switch.NETWORK_POLICIES}),
    ({"settings": {"createClaims": True}}, {Switch.CLAIMS}, set()),
    ({"settings": {"namespaces": ["a"], "kueue": True}}, {Switch.KUEUE}, {Switch.FIRST_RUNTIME}),
    ({"leaderElection": {"enabled": True}}, {Switch.ELECTION}, set()),
]


@pytest.mark.parametrize(("values", "more", "less"), SWITCHES, ids=[json.dumps(values) for values, _, _ in SWITCHES])
def test_the_roles_grant_what_the_table_says_of_what_is_switched_on(values, more, less) -> None:
    assert granted(values) == of_table(*({*BY_DEFAULT} | more) - less)


@every_value_set
def test_no_role_of_the_operator_reaches_further(values) -> None:
    every = [rule for role in (*of_kind(rendered(values), "ClusterRole"), *of_kind(rendered(values), "Role"))
             if (role["kind"], role["metadata"]["name"]) in SCOPES for rule in role["rules"]]  # fmt: skip
    resources = {name for rule in every for name in rule["resources"]}
    assert not {name for name in resources if name.startswith(("secrets", "pods/", "roles", "*"))}
    assert "*" not in {verb for rule in every for verb in rule["verbs"]}


def test_the_switch_of_queues_reaches_the_operator() -> None:
    settings = YAML(typ="safe").load(one(rendered({"settings": {"kueue": True}}), "ConfigMap")["data"]["settings.yaml"])
    assert settings["kueue"] is True


def test_rights_everywhere_or_in_the_named_namespaces_alone() -> None:
    everywhere, named = rendered(VALUES[0]), rendered(VALUES[1])
    assert of_kind(everywhere, "RoleBinding") == of_kind(everywhere, "Role") == []
    assert {binding["roleRef"]["name"] for binding in of_kind(everywhere, "ClusterRoleBinding")} == {
        "finetune-operator",
        "finetune-operator-cluster",
    }
    for kind in ("Role", "RoleBinding"):
        assert [each["metadata"]["namespace"] for each in of_kind(named, kind)] == ["team-a", "team-b"]
    assert "finetune-operator" not in {role["metadata"]["name"] for role in of_kind(named, "ClusterRole")}
    (cluster,) = of_kind(named, "ClusterRoleBinding")
    assert cluster["roleRef"]["name"] == "finetune-operator-cluster"
    for binding in [*of_kind(named, "RoleBinding"), cluster]:
        subject = {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": "system"}
        assert binding["subjects"] == [subject]
    assert {(b["roleRef"]["kind"], b["roleRef"]["name"]) for b in of_kind(named, "RoleBinding")} == {
        ("Role", "finetune-operator-jobs")
    }


def test_the_token_is_mounted_in_the_operator_alone() -> None:
    objects = rendered({})
    assert one(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is True


@every_value_set
def test_settings_reach_the_operator_whole(values) -> None:
    objects = rendered(values)
    texts = [each["data"].get("settings.yaml") for each in of_kind(objects, "ConfigMap")]
    (text,) = documents("".join(text for text in texts if text))
    labels = one(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    policy = {"enabled": True, "operator": {"namespace": "system", "labels": labels}}
    given = {"trainerImage": "finetune-trainer:0.1.0", "networkPolicy": policy, **values.get("settings", {})}
    if "namespaces" in given:
        given["createDefaultRuntime"] = False
    if values.get("leaderElection"):
        lease = {"namespace": "system", "name": "finetune-operator", "leaseDurationSeconds": 30}
        given["leaderElection"] = {**lease, "renewDeadlineSeconds": 10, "retryPeriodSeconds": 2}
    assert Settings.model_validate(text) == Settings.model_validate(given)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= Settings.model_validate(given).shutdown_seconds + 10
    (container,) = pod["containers"]
    own = {"name": "FINETUNE_SETTINGS", "value": "/etc/finetune-operator/settings.yaml"}
    assert container["env"] == [own, *values.get("extraEnv", [])]
    assert {"name": "settings", "mountPath": "/etc/finetune-operator", "readOnly": True} in container["volumeMounts"]


def test_network_policies_are_a_switch_of_the_operators() -> None:
    def settings(**given: Any) -> Settings:
        (text,) = documents(one(rendered({"settings": given}), "ConfigMap")["data"]["settings.yaml"])
        return Settings.model_validate(text)

    assert settings().network_policy.enabled
    assert not settings(networkPolicy={"enabled": False}).network_policy.enabled
    scraped = settings(networkPolicy={"scrapeNamespaces": ["monitoring"], "egress": []}).network_policy
    assert (scraped.enabled, scraped.scrape_namespaces, scraped.egress) == (True, ("monitoring",), ())


def test_new_settings_start_a_new_pod() -> None:
    def checksum(values: dict[str, Any]) -> str:
        deployment = one(rendered(values), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) == checksum({}) != checksum({"settings": {"workers": 3}})


def test_images() -> None:
    def image(values: dict[str, Any]) -> str:
        return str(one(rendered(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"])

    assert image({}) == "finetune-operator:0.1.0"
    assert image({"image": {"tag": "1.2"}}) == "finetune-operator:1.2"
    assert image(VALUES[2]) == f"registry/operator@{DIGEST}"


@pytest.mark.parametrize("keep", [True, False])
def test_the_kinds_are_those_of_crds(keep) -> None:
    for crd in of_kind(rendered({"crds": {"keep": keep}}), "CustomResourceDefinition"):
        (ours,) = documents((ROOT / "crds" / f"{crd['spec']['names']['plural']}.yaml").read_text())
        assert crd["spec"] == ours["spec"]
        policy = {"annotations": {"helm.sh/resource-policy": "keep"}} if keep else {}
        labels = crd["metadata"].pop("labels")
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert crd["metadata"] == {**ours["metadata"], **policy}


def test_a_second_installation_brings_no_kinds() -> None:
    assert of_kind(rendered(VALUES[3]), "CustomResourceDefinition") == []


@every_value_set
def test_no_object_of_our_own_kinds(values) -> None:
    assert not {each["kind"] for each in rendered(values)} & KINDS.keys()


OF_CHILDREN = {"jobs", "services", "network-policies", "claims"}
"""One policy for each kind that the operator makes."""


@pytest.mark.parametrize(
    ("values", "policies"),
    [
        ({}, OF_CHILDREN),
        ({"admissionPolicies": {"secrets": {"enabled": True}}}, {*OF_CHILDREN, "secrets"}),
        ({"admissionPolicies": {"children": {"enabled": False}}}, set()),
    ],
    ids=["default", "secrets too", "none"],
)
def test_the_policy_of_children_is_on_by_default_and_that_of_secrets_off(values, policies) -> None:
    objects = rendered(values)
    names = {each["metadata"]["name"] for each in of_kind(objects, "ValidatingAdmissionPolicy")}
    assert names == {f"finetune-operator-{policy}" for policy in policies}
    bindings = of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert {binding["spec"]["policyName"] for binding in bindings} == names
    assert all(binding["spec"]["validationActions"] == ["Deny"] for binding in bindings)


@every_value_set
def test_every_object_bears_the_labels_by_which_it_is_found(values) -> None:
    """Uninstalling is judged by them, too: what lacks them would be left without anybody's notice."""
    labels = {"app.kubernetes.io/instance": "finetune-operator", "app.kubernetes.io/managed-by": "Helm"}
    for each in rendered(values):
        assert labels.items() <= each["metadata"]["labels"].items(), (each["kind"], each["metadata"]["name"])


def test_two_releases_do_not_meet() -> None:
    def named(release: str) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in rendered({"crds": {"enabled": False}}, release)}

    assert not named("finetune-operator") & named("other")


@pytest.mark.parametrize(("values", "named"), BAD, ids=[named for _, named in BAD])
def test_values_that_mean_nothing_are_refused_by_name(values, named) -> None:
    done = template(values)
    assert done.returncode != 0
    assert named in done.stderr


def test_the_schema_knows_every_setting() -> None:
    schema = json.loads(Path(CHART / "values.schema.json").read_text())["properties"]["settings"]
    assert set(schema["properties"]) == {field.alias for field in Settings.model_fields.values()} - {"leaderElection"}
    assert schema["additionalProperties"] is False


@every_value_set
def test_helm_finds_nothing_to_say(values, tmp_path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    command = [str(BINARIES / "helm"), "lint", "--strict", "--quiet", "--kube-version", "1.34.0", "--values", str(file)]
    done = subprocess.run([*command, str(CHART)], capture_output=True, text=True, check=False)
    assert (done.returncode, "ERROR" in done.stdout, "WARNING" in done.stdout) == (0, False, False), done.stdout
