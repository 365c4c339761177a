#!/usr/bin/env bash
# The operator's and the trainer's image, built and handed to the cluster.
#
#   hack/images.sh build [operator|trainer]   build (both when none is named) what this content has no image of yet
#   hack/images.sh tag operator|trainer       print the full reference
#   hack/images.sh derive FOLDER              build FOLDER on the trainer's image (build argument TRAINER), print the reference
#
# The tag is the version and a digest of everything that goes in: the same content is never built twice, and a changed
# one is never mistaken for the old. With Docker: docker build, then into the kind or local cluster. Without:
# BuildKit on the local cluster's node. BASE_IMAGE replaces Docker's base image.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HERE=$REPOSITORY/hack/cluster
for part in settings process build control-plane node buildkit; do
  # shellcheck source=/dev/null
  source "$HERE/$part.sh"
done
BASE_IMAGE=${BASE_IMAGE:-debian:bookworm-slim}

build_images() {
  local name
  docker_works || { need_root; take_lock; }
  [ $# -gt 0 ] || set -- operator trainer
  for name in "$@"; do ensure_image "$name"; done
}

ensure_image() {
  local reference
  reference=$(tag "$1")
  if docker_works; then
    docker image inspect "$reference" >/dev/null 2>&1 || docker_build "$reference" "$(dockerfile "$1")" "$(version)"
    hand_over "$reference"
  elif [ -z "$(containerd_ctl images ls -q "name==$reference" 2>/dev/null)" ]; then
    ensure_buildkit
    say "  building $reference"
    buildkit_build "$reference" "$(dockerfile "$1")" "$(version)"
    forget_old_images "$reference"
  fi
  say "  $reference"
}

# An image of a test, on the trainer's: what the build itself says goes to standard error.
derive_image() {
  local folder reference trainer
  folder=$(cd "$1" && pwd)
  trainer=$(tag trainer)
  build_images trainer >&2
  reference=localhost/finetune-$(basename "$folder"):$( (echo "$trainer"; cd "$folder" && sha256sum -- *) | sha256sum | cut -c1-12)
  if docker_works; then
    docker build --build-arg TRAINER="$trainer" -t "$reference" "$folder" >&2
    hand_over "$reference" >&2
  elif [ -z "$(containerd_ctl images ls -q "name==$reference")" ]; then
    ensure_buildkit >&2
    buildctl --addr "$BUILDKIT_ADDRESS" build --frontend dockerfile.v0 --progress plain \
      --local context="$folder" --local dockerfile="$folder" --opt image-resolve-mode=local \
      --opt build-arg:TRAINER="$trainer" --output "type=image,name=$reference,unpack=true,compression=uncompressed" >&2
    forget_old_images "$reference" >&2
  fi
  echo "$reference"
}

docker_build() { docker build --build-arg BASE_IMAGE="$BASE_IMAGE" --build-arg VERSION="$3" -t "$1" -f "$REPOSITORY/$2" "$REPOSITORY"; }

# From Docker's own store into the cluster's, where there is a cluster.
hand_over() {
  if [ "$FLAVOUR" = kind ]; then
    kind load docker-image --name "$KIND_CLUSTER" "$1"
  elif running containerd && [ -z "$(containerd_ctl images ls -q "name==$1")" ]; then
    docker save "$1" | containerd_ctl images import -
  fi
}

# localhost/ keeps the reference from ever meaning an image of a public registry.
tag() { echo "localhost/finetune-$(known "$1"):$(version)-$(digest "$1")"; }

known() { case ${1:-} in operator | trainer) echo "$1" ;; *) die "no image '${1:-}': operator or trainer" ;; esac }
dockerfile() { if [ "$1" = trainer ]; then echo trainer-image/Dockerfile; else echo operator/Dockerfile; fi; }
version() { sed -n 's/^version = "\(.*\)".*/\1/p' "$REPOSITORY/pyproject.toml"; }

digest() {
  local inputs=(pyproject.toml README.md LICENSE .dockerignore requirements/build.txt "requirements/$1.txt" operator trainer-image)
  (
    cd "$REPOSITORY"
    find "${inputs[@]}" -type f ! -path '*/__pycache__/*' ! -name '*.pyc' ! -name Dockerfile -print0
    printf '%s\0' "$(dockerfile "$1")"
  ) | LC_ALL=C sort -z | (cd "$REPOSITORY" && xargs -0 sha256sum && echo "$BASE_IMAGE") | sha256sum | cut -c1-12
}

case ${1:-} in
  build) shift; build_images "$@" ;;
  tag) tag "${2:-}" ;;
  derive) derive_image "${2:?which folder}" ;;
  *) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
