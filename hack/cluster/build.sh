# Everything the node is made of: packages from the distribution, binaries from Go modules. Sourced by hack/cluster.sh.
# shellcheck shell=bash

build() {
  install_packages containerd=containerd runc=runc etcd=etcd-server /usr/lib/cni/bridge=containernetworking-plugins \
    iptables=iptables ip=iproute2 conntrack=conntrack openssl=openssl gcc=gcc python3=python3
  command -v go >/dev/null || die "Go is needed to build Kubernetes; install it and try again"
  built kubelet k8s.io/kubernetes "v$KUBERNETES_VERSION" || step "Kubernetes $KUBERNETES_VERSION (about 6 min)" build_kubernetes
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

# k8s.io/kubernetes replaces its staging modules by folders that its published module lacks. A wrapper module points
# them at the published ones instead.
build_kubernetes() {
  local version=$KUBERNETES_VERSION src=$ROOT/src/kubernetes mod symbols=k8s.io/component-base/version c
  local commands=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
  mkdir -p "$src" "$BIN"
  mod=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
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

# For the tests of queues. `go install` would ask the proxy for a list of versions; a wrapper module asks for this one
# alone, and is where the tests ask Go for the folder with its CRDs.
build_kueue() {
  command -v go >/dev/null || die "Go is needed to build Kueue; install it and try again"
  built kueue sigs.k8s.io/kueue "$KUEUE_VERSION" || step "Kueue $KUEUE_VERSION (about 5 min)" compile_kueue
}

compile_kueue() {
  local src=$ROOT/src/kueue
  mkdir -p "$src" "$BIN"
  printf 'module local-kueue\ngo 1.22.4\nrequire sigs.k8s.io/kueue %s\n' "$KUEUE_VERSION" >"$src/go.mod"
  printf 'package tools\nimport _ "sigs.k8s.io/kueue/cmd/kueue"\n' >"$src/tools.go"
  (
    cd "$src"
    CGO_ENABLED=0 nice go build -mod=mod -trimpath -ldflags '-s -w' -o "$BIN/" sigs.k8s.io/kueue/cmd/kueue \
      >"$ROOT/build-kueue.log" 2>&1 || { tail -n 20 "$ROOT/build-kueue.log" >&2; exit 1; }
  )
}
