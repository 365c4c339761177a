# Image builds on the node itself: BuildKit works in the very containerd that the kubelet uses, so a built image is at once
# there for pods and never travels through an archive. Sourced by hack/images.sh.
# shellcheck shell=bash

BASE=localhost/debian:bookworm

ensure_buildkit() {
  healthy || die "images are built on the node: hack/cluster.sh up"
  built buildkitd github.com/moby/buildkit "$BUILDKIT_VERSION" || step "BuildKit $BUILDKIT_VERSION (about 2 min)" build_buildkit
  start_buildkit
  [ -n "$(containerd_ctl images ls -q "name==$BASE")" ] || step "base image from Debian's packages (1 min)" build_base
}

# Built inside its own module: its exclude directives forbid `go install module@version`.
build_buildkit() {
  local dir
  dir=$(go mod download -json "github.com/moby/buildkit@$BUILDKIT_VERSION" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
  (cd "$dir" && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags '-s -w' -o "$BIN/" ./cmd/buildctl ./cmd/buildkitd) \
    >"$ROOT/build.log" 2>&1 || { tail -n 20 "$ROOT/build.log" >&2; die "cannot build BuildKit"; }
}

start_buildkit() {
  mkdir -p "$CONF"
  # The cache of one set of dependencies is 12 GB: room for one, and for what code changes add.
  cat >"$CONF/buildkitd.toml" <<T
root = "$ROOT/buildkit"
[grpc]
  address = ["$BUILDKIT_ADDRESS"]
[worker.oci]
  enabled = false
[worker.containerd]
  enabled = true
  address = "$CONTAINERD_SOCKET"
  namespace = "k8s.io"
  networkMode = "host"
  reservedSpace = "14GB"
  maxUsedSpace = "20GB"
  minFreeSpace = "10GB"
T
  start buildkitd buildkitd --config "$CONF/buildkitd.toml"
  await buildkitd 30 buildctl --addr "$BUILDKIT_ADDRESS" debug workers
}

# A minimal Debian with this machine's certificate authorities: behind a proxy that inspects TLS, downloads need them.
build_base() {
  local work=$ROOT/base rootfs=$ROOT/base/rootfs
  install_packages debootstrap=debootstrap
  [ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || apt_install debian-archive-keyring
  rm -rf "$work"
  mkdir -p "$rootfs" "$LOGS"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$rootfs" >"$LOGS/base.log" 2>&1 ||
    { tail -n 20 "$LOGS/base.log" >&2; die "debootstrap failed; its log is $LOGS/base.log"; }
  cp -r /usr/local/share/ca-certificates/. "$rootfs/usr/local/share/ca-certificates/"
  chroot "$rootfs" update-ca-certificates >>"$LOGS/base.log" 2>&1
  rm -rf "$rootfs"/var/cache/apt/* "$rootfs"/var/lib/apt/lists/* "$rootfs"/usr/share/doc/* "$rootfs"/usr/share/man/*
  python3 "$HERE/mkimage.py" "$BASE" "$rootfs" "" "$work/base.tar"
  load "$work/base.tar" >/dev/null
  rm -rf "$work"
}

# buildkit_build REFERENCE DOCKERFILE VERSION
buildkit_build() {
  buildctl --addr "$BUILDKIT_ADDRESS" build --frontend dockerfile.v0 --progress "${PROGRESS:-auto}" \
    --local context="$REPOSITORY" --local dockerfile="$(dirname "$REPOSITORY/$2")" --opt image-resolve-mode=local \
    --opt build-arg:BASE_IMAGE="$BASE" --opt build-arg:VERSION="$3" \
    --output "type=image,name=$1,unpack=true,compression=uncompressed"
}

KEPT_IMAGES=4

# An image costs kilobytes while it shares its dependencies with the next, and gigabytes once they changed; so only the newest
# few of a name stay, and those that containers use.
forget_old_images() {
  local reference target
  echo "$1" >>"$ROOT/images.built"
  grep -F "${1%:*}:" "$ROOT/images.built" | tac | awk '!seen[$0]++' | tail -n +$((KEPT_IMAGES + 1)) | while read -r reference; do
    target=$(containerd_ctl images ls "name==$reference" | awk 'NR == 2 {print $3}')
    [ -n "$target" ] && ! containerd_ctl containers ls | awk '{print $2}' | grep -qxF "$reference" || continue
    # the kubelet's own reference to the same content, sha256:..., would keep it on disk
    containerd_ctl images ls | awk -v target="$target" '$3 == target {print $1}' | while read -r reference; do
      containerd_ctl images rm "$reference" >/dev/null
    done
  done
}
