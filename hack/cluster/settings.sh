# The one place for versions, addresses and paths of the local cluster. Sourced by the scripts in hack/.
# shellcheck shell=bash disable=SC2034

# --- versions: each is a Go module, built from source and verified against Go's checksum database
KUBERNETES_VERSION=1.34.4
ETCD_VERSION=v3.6.16   # Debian's 3.4 cannot tell how far a watch is: the API server then reads every list from it anew
COREDNS_VERSION=v1.12.4
HELM_VERSION=v3.19.0
KUBECONFORM_VERSION=v0.8.0
BUILDKIT_VERSION=v0.25.2
KUEUE_VERSION=v0.8.1   # for tests of queues alone: `up` does not need it

# --- addresses
NODE=node0
POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
API_PORT=6443
ETCD_PORT=12379       # not the default: a distribution's etcd package may have started its own on that
ETCD_PEER_PORT=12380
NETWORK=local-cluster # our own names, so that taking them down cannot hit another cluster's
BRIDGE=lcluster0

# --- paths
ROOT=${CLUSTER_ROOT:-/var/lib/local-cluster}
case $ROOT in /*) ;; *) ROOT=$PWD/$ROOT ;; esac   # the kubelet refuses a relative root
BIN=$ROOT/bin
PKI=$ROOT/pki
CONF=$ROOT/conf
LOGS=$ROOT/logs
RUN=$ROOT/run
NODE_MARK=$RUN/node   # this root's node has bridge and packet filter rules on the machine
CONTAINERD_SOCKET=$ROOT/containerd.sock
BUILDKIT_ADDRESS=unix://$ROOT/buildkitd.sock
ETCD_URL=http://127.0.0.1:$ETCD_PORT

# What `up` starts and `status` reports, in the order of starting.
COMPONENTS=(etcd kube-apiserver kube-controller-manager kube-scheduler containerd coredns kube-proxy kubelet)

docker_works() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }
default_flavour() { if command -v kind >/dev/null && docker_works; then echo kind; else echo local; fi; }
FLAVOUR=${CLUSTER:-$(default_flavour)}
KIND_CLUSTER=${KIND_CLUSTER:-finetune}

if [ "$FLAVOUR" = local ]; then
  export PATH=$BIN:$PATH KUBECONFIG=$ROOT/admin.kubeconfig
fi

say() { printf '%s\n' "$*" >&2; }
die() { say "cluster: $*"; exit 1; }

# step WHAT COMMAND...: a line before, the seconds behind it, so that a person sees what takes long.
step() {
  local what=$1 begun=$SECONDS
  shift
  printf '  %-44s' "$what" >&2
  "$@"
  printf '%4ds\n' $((SECONDS - begun)) >&2
}
