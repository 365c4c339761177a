"""Alerts, dashboard and the code tell of the same metrics, and the chart makes what a value turns on and no more."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from finetune_operator import metrics
from manifests import ROOT
from rendering import VALUES, of_kind, one, rendered

MONITORED = {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}
METRIC = re.compile(r"finetune_operator_[a-z_]+")
SELECTOR = re.compile(r"(finetune_operator_[a-z_]+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)[^a-z]*(?:rate|increase)?\(?(finetune_operator_[a-z_]+)")
ALWAYS = {"namespace", "job", "le"}
"""Labels that Prometheus itself gives, and a histogram's own."""
OPTIONAL = {
    "Service",
    "ServiceMonitor",
    "PrometheusRule",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "Role",
    "RoleBinding",
}


def exported() -> dict[str, set[str]]:
    """Every series of the operator by its name as it is scraped, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        (family,) = metric.describe()
        labels = set(metric._labelnames)
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + ending: labels for ending in endings}
    return found


def rules() -> list[dict[str, Any]]:
    """The alerts as rendered."""
    (group,) = one(rendered(VALUES[4]), "PrometheusRule")["spec"]["groups"]
    return list(group["rules"])


@functools.cache
def expressions() -> dict[str, str]:
    """Every expression of alerts and dashboard by where it stands."""
    config_maps = [
        each for each in of_kind(rendered(VALUES[4]), "ConfigMap") if "dashboard" in each["metadata"]["name"]
    ]
    board = json.loads(config_maps[0]["data"]["finetune-operator.json"])
    shown = {f"{p['title']} {t['refId']}": t["expr"] for p in board["panels"] for t in p["targets"]}
    return {rule["alert"]: rule["expr"] for rule in rules()} | shown


@pytest.mark.parametrize("where", sorted(expressions()))
def test_an_expression_asks_for_what_the_operator_tells(where) -> None:
    expression, known = expressions()[where], exported()
    asked = METRIC.findall(expression)
    assert asked
    assert [name for name in asked if name not in known] == []
    for name, selectors in SELECTOR.findall(expression):
        labels = {part.partition("=")[0].rstrip("!").strip() for part in selectors.split(",")}
        assert labels - ALWAYS <= known[name], (name, labels)
    for labels, name in GROUPED.findall(expression):
        assert {label.strip() for label in labels.split(",")} - ALWAYS <= known[name], (name, labels)
    assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))


def test_every_metric_is_shown() -> None:
    shown = {name for expression in expressions().values() for name in METRIC.findall(expression)}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in exported()} - families == set()


def test_no_label_is_a_users_to_choose() -> None:
    labels = {label for labels in exported().values() for label in labels}
    bounded = {"phase", "result", "reason", "kind", "outcome", "verb", "resource", "code", "runtime"}
    assert labels == bounded, "runtime: the platform team's; all others: from the code"


def test_metrics_are_registered_under_our_prefix() -> None:
    ours = {family.name for family in REGISTRY.collect() if family.name.startswith("finetune")}
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in exported()} == ours


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in rules():
        assert set(rule) - {"keep_firing_for"} == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 60
        assert 'namespace="system",job="finetune-operator-metrics"' in rule["expr"], "of this installation alone"


@pytest.mark.parametrize("stuck_after", [120, 600.5])
def test_an_alert_comes_before_the_restart_that_ends_its_cause(stuck_after) -> None:
    """The kubelet restarts an operator that /healthz says is unhealthy, and its gauges begin anew."""
    objects = rendered({"settings": {"stuckAfterSeconds": stuck_after}, "metrics": MONITORED})
    (group,) = one(objects, "PrometheusRule")["spec"]["groups"]
    found = {rule["alert"]: rule for rule in group["rules"] if "keep_firing_for" in rule}
    assert set(found) == {"FineTuneWatchStale", "FineTuneQueueStuck"}
    probe = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    restart = stuck_after + probe["periodSeconds"] * 3
    for rule in found.values():
        over = float(re.findall(r"> ([0-9.]+)", rule["expr"])[0])
        scraped = _seconds(one(objects, "ServiceMonitor")["spec"]["endpoints"][0]["interval"])
        assert over + scraped + _seconds(group["interval"]) + _seconds(rule["for"]) < restart
        again = over + scraped + _seconds(group["interval"]) + _seconds(rule["for"])
        assert _seconds(rule["keep_firing_for"]) > again, "it stays while the operator is restarted again and again"


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_a_service_monitor_finds_the_service_and_the_service_the_pods() -> None:
    objects = rendered(VALUES[4])
    service, monitor = one(objects, "Service"), one(objects, "ServiceMonitor")
    pods = one(objects, "Deployment")["spec"]["template"]
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (port,), (endpoint,) = service["spec"]["ports"], monitor["spec"]["endpoints"]
    (container,) = pods["spec"]["containers"]
    assert (port["name"], port["targetPort"]) == (endpoint["port"], container["ports"][0]["name"])


def test_by_default_none_of_it_is_made() -> None:
    assert not {each["kind"] for each in rendered({})} & OPTIONAL
    assert len(of_kind(rendered({}), "ConfigMap")) == 1


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({"metrics": {"service": {"enabled": True}}}, {"Service"}),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, {"Service", "ServiceMonitor"}),
        ({"metrics": {"prometheusRule": {"enabled": True}}}, {"PrometheusRule"}),
        ({"podDisruptionBudget": {"enabled": True}}, set()),
        ({"leaderElection": {"enabled": True}}, {"Role", "RoleBinding"}),
        ({"networkPolicy": {"enabled": True}}, {"NetworkPolicy"}),
        (VALUES[4], OPTIONAL),
    ],
)
def test_a_value_brings_what_it_names(values, kinds) -> None:
    assert {each["kind"] for each in rendered(values)} & OPTIONAL == kinds


def test_leases_are_touched_in_the_operators_own_namespace_alone() -> None:
    objects = rendered(VALUES[4])
    role, binding = one(objects, "Role"), one(objects, "RoleBinding")
    assert [rule["resources"] for rule in role["rules"]] == [["leases"], ["leases"]]
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, ["finetune-operator"]], (
        "one Lease, once made"
    )
    assert {role["metadata"]["namespace"], binding["metadata"]["namespace"]} == {"system"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    everywhere = [rule for role in of_kind(objects, "ClusterRole") for rule in role["rules"]]
    assert not [rule for rule in everywhere if "leases" in rule["resources"]]


def test_pods_are_spread_and_budgeted_by_the_selector_of_the_deployment() -> None:
    objects = rendered(VALUES[4])
    spec = one(objects, "Deployment")["spec"]
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    budget, policy = one(objects, "PodDisruptionBudget"), one(objects, "NetworkPolicy")
    assert spread["labelSelector"] == budget["spec"]["selector"] == policy["spec"]["podSelector"] == spec["selector"]
    (ingress,) = policy["spec"]["ingress"]
    assert ingress["from"] == VALUES[4]["networkPolicy"]["from"]


def test_the_operations_page_explains_every_metric() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().partition("## Monitoring")[2].partition("\n## ")[0]
    told = {name.removeprefix("finetune_operator_") for name in exported()}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in told}
    assert {name for name in families if not re.search(rf"`{name}[`{{]", page)} == set()
