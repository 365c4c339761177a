#!/usr/bin/env bash
# A real Kubernetes to develop and test against, one command away.
#
#   hack/cluster.sh build             compile and install what the node needs (minutes once, then a second)
#   hack/cluster.sh build-kueue       compile Kueue, which tests of queues start (minutes once, then a second)
#   hack/cluster.sh up                start it; does nothing on a healthy cluster, repairs a crashed one
#   hack/cluster.sh status            what runs and what does not; exit 0 only when all of it is healthy
#   hack/cluster.sh down              stop it; objects, images and volumes stay for the next `up`
#   hack/cluster.sh down --wipe       and forget objects, certificates and volumes; images and binaries stay
#   hack/cluster.sh down --purge      and remove everything, binaries too
#   hack/cluster.sh load FILE.tar     import a saved image
#   hack/cluster.sh kind              print which cluster these commands mean: kind or local
#   eval "$(hack/cluster.sh env)"     KUBECONFIG and PATH for kubectl and helm
#
# With Docker and kind on the machine the cluster is a kind cluster. Elsewhere it is one node made of upstream
# binaries, built from the Go modules that cluster/settings.sh pins; that way needs root, Go and apt, and no
# image registry. CLUSTER=kind|local overrides the choice; state lies in CLUSTER_ROOT (/var/lib/local-cluster).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/cluster" && pwd)
for part in settings process build certificates control-plane node teardown kind; do
  # shellcheck source=/dev/null
  source "$HERE/$part.sh"
done

up() {
  if healthy; then
    say "the cluster is up"
    return
  fi
  build
  refuse_taken_port etcd "$ETCD_PORT"
  refuse_taken_port kube-apiserver "$API_PORT"
  step "certificates" issue_certificates
  step "etcd" start_etcd
  step "kube-apiserver" start_apiserver
  step "controllers and scheduler" start_controllers
  step "containerd" start_containerd
  step "pause image" ensure_pause_image
  step "cluster DNS" start_dns
  step "kube-proxy" start_proxy
  step "kubelet and node ready" start_kubelet
  say "ready: eval \"\$(hack/cluster.sh env)\""
}

down() {
  case ${1:-} in '' | --wipe | --purge) ;; *) die "down takes --wipe or --purge, not $1" ;; esac
  step "control plane and kubelet" stop_components
  step "pods" remove_pods
  step "container runtime" stop_runtime
  step "mounts, bridge and packet filter rules" remove_node_leftovers
  case ${1:-} in
    --wipe) step "objects, certificates and volumes" wipe_state ;;
    --purge) step "$ROOT" rm -rf "$ROOT" ;;
  esac
}

status() {
  local name
  for name in "${COMPONENTS[@]}"; do
    printf '%-24s %s\n' "$name" "$(running "$name" && echo "running, pid $(pid_of "$name")" || echo 'NOT RUNNING')"
  done
  api_ready && kubectl get nodes -o wide || echo "the API server does not answer"
  healthy
}

# shellcheck disable=SC2016  # PATH is for the caller's shell to expand
env_lines() { printf 'export KUBECONFIG=%q PATH=%q:$PATH\n' "$KUBECONFIG" "$BIN"; }

main() {
  local command=${1:-help}
  shift || true
  if [ "$FLAVOUR" = kind ] && declare -F "kind_$command" >/dev/null; then
    "kind_$command" "$@"
    return
  fi
  case $command in
    build) take_lock; build ;;
    build-kueue) take_lock; build_kueue ;;
    up | down) need_root; take_lock; "$command" "$@" ;;
    status | load) "$command" "$@" ;;
    env) env_lines ;;
    kind) echo "$FLAVOUR" ;;
    help | -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
    *) die "no command '$command'; try: hack/cluster.sh help" ;;
  esac
}

main "$@"
