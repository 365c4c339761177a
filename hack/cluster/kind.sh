# The same commands on a kind cluster, where Docker can run one. Sourced by hack/cluster.sh.
# shellcheck shell=bash

# Returns 1 for a command that means the same in both flavours.
kind_main() {
  case $1 in
    build) command -v kind >/dev/null || die "CLUSTER=kind, but there is no kind on the PATH" ;;
    up) kind_exists || kind create cluster --name "$KIND_CLUSTER" --wait 180s; kind export kubeconfig --name "$KIND_CLUSTER" ;;
    status) kubectl get nodes -o wide ;;
    down) kind delete cluster --name "$KIND_CLUSTER" ;;
    load) kind load image-archive --name "$KIND_CLUSTER" "$2" ;;
    env) printf 'export KUBECONFIG=%q\n' "${KUBECONFIG:-$HOME/.kube/config}" ;;
    *) return 1 ;;
  esac
}

kind_exists() { kind get clusters 2>/dev/null | grep -qx "$KIND_CLUSTER"; }
