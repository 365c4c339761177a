# The node: containerd, pod network, DNS, kube-proxy, kubelet. Sourced by hack/cluster.sh.
# shellcheck shell=bash

node_ready() {
  [ "$(kubectl get node "$NODE" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]
}

# Healthy means: every process we recorded is that process still, the API server is ready, and so is the node.
healthy() { all_running && api_ready && node_ready; }

containerd_ctl() { ctr -a "$CONTAINERD_SOCKET" -n k8s.io "$@"; }

load() { containerd_ctl images import "$1"; }

start_containerd() {
  mkdir -p "$CONF/cni" "$ROOT/cni" "$RUN"
  touch "$NODE_MARK"
  sysctl -qw net.ipv4.ip_forward=1
  cat >"$CONF/cni/10-bridge.conflist" <<J
{"cniVersion": "1.0.0", "name": "$NETWORK", "plugins": [
  {"type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$ROOT/cni", "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
J
  # restrict_oom_score_adj: where root lacks CAP_SYS_RESOURCE, runc cannot lower the score, and every pod would fail.
  # netns_mounts_under_state_dir: so that teardown finds the network namespaces that are ours.
  cat >"$CONF/containerd.toml" <<J
version = 2
root = "$ROOT/containerd/root"
state = "$ROOT/containerd/state"
[grpc]
  address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$CONF/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
J
  start containerd containerd -c "$CONF/containerd.toml"
  await containerd 60 containerd_ctl version
  # It answers before it has recovered the pods of an earlier run, and a kubelet that comes by then gives up.
  await containerd 60 grep -q "Start streaming server" "$LOGS/containerd.log"
}

# What holds a pod's namespaces open. Upstream's image cannot be pulled here; the program is twenty words of C.
ensure_pause_image() {
  local work=$ROOT/pause
  [ -z "$(containerd_ctl images ls -q name==localhost/pause:1)" ] || return 0
  mkdir -p "$work/rootfs"
  cat >"$work/pause.c" <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { _exit(0); }
static void reap(int s) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }
C
  gcc -static -Os -o "$work/rootfs/pause" "$work/pause.c"
  python3 "$HERE/mkimage.py" localhost/pause:1 "$work/rootfs" /pause "$work/pause.tar"
  load "$work/pause.tar" >/dev/null
}

# Outside of the cluster, as one more process: pods ask the node's address, so DNS needs no image and no pod.
start_dns() {
  cat >"$CONF/Corefile" <<J
.:53 {
  bind $IP
  errors
  kubernetes cluster.local {
    kubeconfig $ROOT/admin.kubeconfig local
  }
  forward . /etc/resolv.conf
  cache 5
}
J
  start coredns coredns -conf "$CONF/Corefile"
}

start_proxy() {
  start kube-proxy kube-proxy --kubeconfig="$ROOT/proxy.kubeconfig" --hostname-override="$NODE" --cluster-cidr="$POD_CIDR" \
    --proxy-mode=iptables --conntrack-max-per-core=0
}

start_kubelet() {
  # failCgroupV1: the node may be an older machine. Image garbage collection off: nothing could pull an image back.
  cat >"$CONF/kubelet.yaml" <<J
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
clusterDNS: [$IP]
clusterDomain: cluster.local
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $PKI/ca.crt}, webhook: {enabled: true}}
authorization: {mode: Webhook}
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
J
  start kubelet kubelet --config="$CONF/kubelet.yaml" --kubeconfig="$ROOT/node.kubeconfig" --hostname-override="$NODE" \
    --node-ip="$IP" --root-dir="$ROOT/kubelet" --cert-dir="$ROOT/kubelet-pki"
  await kubelet 60 http_ok http://127.0.0.1:10248/healthz   # after a crash the node still reads Ready from before
  await kubelet 90 node_ready
  await coredns 30 true
}
