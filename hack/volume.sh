#!/usr/bin/env bash
# A claim with storage behind it, and files in and out of it, the same on the local node as on kind.
#
#   hack/volume.sh create NAME NAMESPACE [SIZE]          a bound claim that the pods' user may write (1Gi)
#   hack/volume.sh put NAME NAMESPACE FOLDER [TARGET]    copy what is in FOLDER into the volume (or TARGET in it)
#   hack/volume.sh get NAME NAMESPACE SOURCE FOLDER      copy SOURCE of the volume into FOLDER
#   hack/volume.sh delete NAME NAMESPACE                 remove the claim, the volume and its files
#
# ACCESS_MODE=ReadWriteMany asks for that, where the storage has it.
# The local node has no provisioner: there a claim gets a `local` volume at CLUSTER_ROOT/volumes/NAMESPACE-NAME.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
source "$HERE/cluster/settings.sh"
POD_USER=65532   # as in the Dockerfiles

create() {
  local name=$1 namespace=$2 size=${3:-1Gi} class=''
  if [ "$FLAVOUR" = local ]; then
    local_volume "$name" "$namespace" "$size"
    class="storageClassName: '', volumeName: $namespace-$name,"
  fi
  kubectl apply -f - <<Y
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $name, namespace: $namespace}
spec: {accessModes: [${ACCESS_MODE:-ReadWriteOnce}], $class resources: {requests: {storage: $size}}}
Y
  # kind's provisioner waits for the first pod, so only the local volume is bound already
  [ "$FLAVOUR" != local ] || kubectl -n "$namespace" wait --for=jsonpath='{.status.phase}'=Bound "pvc/$name" --timeout=60s
}

local_volume() {
  local name=$1 namespace=$2 size=$3 folder=$ROOT/volumes/$2-$1
  [ "$(id -u)" = 0 ] || die "the volume's folder $folder needs root"
  # a volume whose claim was deleted remembers that claim and would never be bound again
  case $(kubectl get pv "$namespace-$name" --ignore-not-found -o 'jsonpath={.status.phase}') in
    Released | Failed) kubectl delete pv "$namespace-$name" ;;
  esac
  install -d -o $POD_USER -g $POD_USER -m 0770 "$folder"
  kubectl apply -f - <<Y
apiVersion: v1
kind: PersistentVolume
metadata: {name: $namespace-$name}
spec:
  capacity: {storage: $size}
  accessModes: [ReadWriteOnce, ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ''
  claimRef: {name: $name, namespace: $namespace}
  local: {path: $folder}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$NODE]}]}]}
Y
}

put() {
  local target=/volume/${4:-}
  with_pod "$1" "$2"
  in_pod mkdir -p "$target"
  tar -C "$3" -cf - . | in_pod tar -C "$target" --no-same-owner -xf -
}

get() {
  with_pod "$1" "$2"
  mkdir -p "$4"
  in_pod tar -C "/volume/$3" -cf - . | tar -C "$4" --no-same-owner -xf -
}

# A pod that mounts the claim and waits; gone when this script ends. It passes the restricted pod security standard.
with_pod() {
  NAMESPACE=$2 POD=volume-$1-$$
  trap 'kubectl -n "$NAMESPACE" delete pod "$POD" --grace-period=1 --wait=false >/dev/null' EXIT
  kubectl -n "$NAMESPACE" apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $POD}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: $POD_USER, runAsGroup: $POD_USER, fsGroup: $POD_USER, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: files
      image: ${VOLUME_IMAGE:-$("$HERE/images.sh" tag operator)}
      command: [sleep, infinity]
      resources: {limits: {cpu: '1', memory: 256Mi}, requests: {cpu: 10m, memory: 32Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: volume, mountPath: /volume}]
  volumes: [{name: volume, persistentVolumeClaim: {claimName: $1}}]
Y
  kubectl -n "$NAMESPACE" wait --for=condition=Ready "pod/$POD" --timeout=120s >/dev/null
}

in_pod() { kubectl -n "$NAMESPACE" exec -i "$POD" -- "$@"; }

delete() {
  kubectl -n "$2" delete pvc "$1" --ignore-not-found --timeout=60s
  [ "$FLAVOUR" = local ] || return 0
  kubectl delete pv "$2-$1" --ignore-not-found --timeout=60s
  rm -rf "$ROOT/volumes/$2-$1"
}

case "${1:-}/$#" in
  create/[34] | put/[45] | get/5 | delete/3) "$@" ;;
  *) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
