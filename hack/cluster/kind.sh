# The same commands on a kind cluster, where Docker can run one. Sourced by hack/cluster.sh. There is no kind_build: tests that
# start an API server of their own need the local build in any case.
# shellcheck shell=bash

kind_up() {
  kind get clusters 2>/dev/null | grep -qx "$KIND_CLUSTER" || kind create cluster --name "$KIND_CLUSTER" --wait 180s
  kind export kubeconfig --name "$KIND_CLUSTER"
}
kind_status() { kubectl get nodes -o wide; }
kind_down() { kind delete cluster --name "$KIND_CLUSTER"; }
kind_load() { kind load image-archive --name "$KIND_CLUSTER" "$1"; }
kind_env() { printf 'export KUBECONFIG=%q\n' "${KUBECONFIG:-$HOME/.kube/config}"; }
