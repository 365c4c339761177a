# etcd, the API server and the controllers. Sourced by hack/cluster.sh.
# shellcheck shell=bash

api_ready() { kubectl get --raw /readyz --request-timeout=5s >/dev/null 2>&1; }

start_etcd() {
  start etcd etcd --data-dir "$ROOT/etcd" --listen-client-urls "$ETCD_URL" --advertise-client-urls "$ETCD_URL" \
    --listen-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT"
  await etcd 30 http_ok "$ETCD_URL/health"
}

http_ok() { python3 -c "import urllib.request as u; u.urlopen('$1', timeout=2)"; }

start_apiserver() {
  start kube-apiserver kube-apiserver --etcd-servers="$ETCD_URL" --secure-port="$API_PORT" --advertise-address="$IP" \
    --cert-dir="$ROOT/apiserver" --client-ca-file="$PKI/ca.crt" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --kubelet-client-certificate="$PKI/admin.crt" --kubelet-client-key="$PKI/admin.key" \
    --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$PKI/sa.key" --service-account-signing-key-file="$PKI/sa.key" \
    --service-cluster-ip-range="$SERVICE_CIDR" --allow-privileged \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
  await kube-apiserver 60 api_ready
}

start_controllers() {
  start kube-controller-manager kube-controller-manager --kubeconfig="$ROOT/controller-manager.kubeconfig" \
    --bind-address=127.0.0.1 --cert-dir="$ROOT/controller-manager" --service-account-private-key-file="$PKI/sa.key" \
    --root-ca-file="$PKI/ca.crt" --use-service-account-credentials --leader-elect=false \
    --pvclaimbinder-sync-period=1s   # its default lets a claim that came just after its volume wait for 15 s
  start kube-scheduler kube-scheduler --kubeconfig="$ROOT/scheduler.kubeconfig" \
    --bind-address=127.0.0.1 --cert-dir="$ROOT/scheduler" --leader-elect=false
  # a pod can only be created once its namespace has a service account
  await kube-controller-manager 60 kubectl -n default get serviceaccount default
}
