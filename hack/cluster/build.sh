# Everything the node is made of: packages from the distribution, binaries from Go modules. Sourced by hack/cluster.sh.
# shellcheck shell=bash

build() {
  install_packages containerd=containerd runc=runc /usr/lib/cni/bridge=containernetworking-plugins \
    iptables=iptables ip=iproute2 conntrack=conntrack openssl=openssl gcc=gcc python3=python3
  command -v go >/dev/null || die "Go is needed to build Kubernetes; install it and try again"
  built kubelet k8s.io/kubernetes "v$KUBERNETES_VERSION" || step "Kubernetes $KUBERNETES_VERSION (about 6 min)" build_kubernetes
  built etcd go.etcd.io/etcd/server/v3 "$ETCD_VERSION" ||
    step "etcd $ETCD_VERSION" compile etcd "$ETCD_VERSION" go.etcd.io/etcd/server/v3
  go_install coredns github.com/coredns/coredns "$COREDNS_VERSION"
  go_install helm helm.sh/helm/v3/cmd/helm "$HELM_VERSION"
  go_install kubeconform github.com/yannh/kubeconform/cmd/kubeconform "$KUBECONFORM_VERSION"
}

# install_packages COMMAND=PACKAGE...: only what is missing, so that a warm run asks no package index.
install_packages() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  step "packages: ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
  local log
  need_root
  log=$(mktemp)
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1 ||
    { cat "$log" >&2; die "cannot install $*"; }
  rm -f "$log"
}

# The module's version stands in the binary itself: no stamp file that could lie.
built() { [ -x "$BIN/$1" ] && go version -m "$BIN/$1" | grep -qE "\s${2//./\\.}\s+${3//./\\.}\s"; }

go_install() {
  local name=$1 package=$2 version=$3 module
  module=${package%%/cmd/*}
  built "$name" "$module" "$version" && return
  step "$name $version" env GOBIN="$BIN" CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$package@$version"
}

# The go.mod of MODULE@VERSION.
module_file() { go mod download -json "$1" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p'; }

# k8s.io/kubernetes replaces its staging modules by folders that its published module lacks. A wrapper module points
# them at the published ones instead.
build_kubernetes() {
  local version=$KUBERNETES_VERSION src=$ROOT/src/kubernetes mod symbols=k8s.io/component-base/version c
  local commands=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
  mkdir -p "$src" "$BIN"
  mod=$(module_file "k8s.io/kubernetes@v$version")
  {
    printf 'module local-cluster\ngo 1.24.0\nrequire k8s.io/kubernetes v%s\n' "$version"
    sed -n "s#^\s*\(k8s\.io/[^ ]*\) => \./staging.*#replace \1 => \1 v0.${version#1.}#p" "$mod"
  } >"$src/go.mod"
  {
    echo "package tools"
    for c in "${commands[@]}"; do echo "import _ \"k8s.io/kubernetes/cmd/$c\""; done
  } >"$src/tools.go"
  (
    cd "$src"
    go mod tidy >"$ROOT/build.log" 2>&1 || { tail -n 20 "$ROOT/build.log" >&2; exit 1; }
    CGO_ENABLED=0 go build -trimpath -o "$BIN/" \
      -ldflags "-s -w -X $symbols.gitVersion=v$version -X $symbols.gitMajor=1 -X $symbols.gitMinor=${version#1.}" \
      "${commands[@]/#/k8s.io/kubernetes/cmd/}"
  )
}

# For the tests of queues, which also ask Go in the wrapper module for the folder with its CRDs.
build_kueue() {
  command -v go >/dev/null || die "Go is needed to build Kueue; install it and try again"
  built kueue sigs.k8s.io/kueue "$KUEUE_VERSION" ||
    step "Kueue $KUEUE_VERSION (about 5 min)" compile kueue "$KUEUE_VERSION" sigs.k8s.io/kueue /cmd/kueue
}

# compile NAME VERSION MODULE [COMMAND]: what `go install` would not, because the module replaces others, or because it
# would ask the proxy for a list of versions. A wrapper module asks for this version alone.
compile() {
  local name=$1 version=$2 module=$3 command=${4:-} src=$ROOT/src/$1
  mkdir -p "$src" "$BIN"
  {
    printf 'module local-%s\nrequire %s %s\n' "$name" "$module" "$version"
    grep '^go ' "$(module_file "$module@$version")"   # it decides how Go itself behaves in the binary
  } >"$src/go.mod"
  printf 'package tools\nimport _ "%s"\n' "$module$command" >"$src/tools.go"
  (
    cd "$src"
    CGO_ENABLED=0 nice go build -mod=mod -trimpath -ldflags '-s -w' -o "$BIN/$name" "$module$command" \
      >"$ROOT/build-$name.log" 2>&1 || { tail -n 20 "$ROOT/build-$name.log" >&2; exit 1; }
  )
}
