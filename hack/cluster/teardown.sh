# Taking the node down without a trace of what ran, and without touching what is not ours. Sourced by hack/cluster.sh.
# shellcheck shell=bash

# First those who would start pods again, and only then the pods.
stop_components() { stop kubelet kube-proxy coredns kube-scheduler kube-controller-manager kube-apiserver etcd buildkitd; }

# A containerd that had crashed is started once more: only it knows all of its containers.
remove_pods() {
  local id
  [ -d "$ROOT/containerd/state" ] || return 0
  start_containerd
  for id in $(containerd_ctl tasks ls -q); do
    containerd_ctl tasks kill --all --signal KILL "$id" >/dev/null 2>&1 || true   # it may end by itself meanwhile
    containerd_ctl tasks delete --force "$id" >/dev/null 2>&1 || true
  done
  for id in $(containerd_ctl containers ls -q); do
    containerd_ctl containers delete "$id" >/dev/null
    rm -f "/var/lib/cni/results/"*"-$id-"*   # what the network plug-ins remember of it
  done
}

stop_runtime() {
  local pid
  stop containerd
  for pid in $(our_shims); do kill -KILL "$pid" 2>/dev/null || true; done
}

# A shim outlives containerd on purpose; ours name our socket on their command line.
our_shims() {
  local cmdline
  for cmdline in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' <"$cmdline" 2>/dev/null | grep -q "containerd-shim.* -address $CONTAINERD_SOCKET "; then
      basename "$(dirname "$cmdline")"
    fi
  done
}

remove_node_leftovers() {
  local mount
  awk -v root="$ROOT/" 'index($5, root) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r mount; do
    umount -l "$mount"
  done
  rm -rf "$ROOT/containerd/state" "$ROOT/cni" "$ROOT/kubelet/pods"
  [ -f "$NODE_MARK" ] || return 0   # what follows belongs to the machine, and may be another CLUSTER_ROOT's
  ! ip link show "$BRIDGE" >/dev/null 2>&1 || ip link delete "$BRIDGE"
  find /sys/fs/cgroup -type d -path '*/kubepods*' -depth -exec rmdir {} + 2>/dev/null || true   # only empty ones can go
  [ ! -x "$BIN/kube-proxy" ] || kube-proxy --cleanup >/dev/null 2>&1 || true   # 1 when there was nothing to clean
  remove_masquerading
  remove_kubelet_chains
  rm "$NODE_MARK"
}

# The bridge plug-in's rule and chain of each pod; the comment carries the network's name.
remove_masquerading() {
  {
    echo '*nat'
    iptables-save -t nat | sed -nE "s/^-A (POSTROUTING .*name: ..$NETWORK.* -j )(CNI-[^ ]+)$/-D \1\2\n-F \2\n-X \2/p"
    echo COMMIT
  } | iptables-restore --noflush
}

# kube-proxy removes its own rules; these are the kubelet's, which has no command for that.
remove_kubelet_chains() {
  local iptables table
  for iptables in iptables ip6tables; do
    "$iptables" -w -D INPUT -j KUBE-FIREWALL 2>/dev/null || true
    "$iptables" -w -D OUTPUT -j KUBE-FIREWALL 2>/dev/null || true
    { "$iptables" -w -F KUBE-FIREWALL && "$iptables" -w -X KUBE-FIREWALL; } 2>/dev/null || true
    for table in filter nat mangle; do
      "$iptables" -w -t "$table" -X KUBE-KUBELET-CANARY 2>/dev/null || true
    done
    "$iptables" -w -t mangle -X KUBE-IPTABLES-HINT 2>/dev/null || true
  done
}

# Binaries, images and the build cache cost minutes to make and depend on nothing that is wiped.
wipe_state() {
  (cd "$ROOT" && rm -rf etcd pki conf kubelet kubelet-pki apiserver controller-manager scheduler volumes pause logs run ./*.kubeconfig)
}
