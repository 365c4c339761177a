# The cluster's certificate authority, certificates and kubeconfigs. Sourced by hack/cluster.sh.
# shellcheck shell=bash

node_ip() { hostname -I | tr ' ' '\n' | grep -m1 -F .; }   # the first IPv4 address

issue_certificates() {
  IP=$(node_ip)
  mkdir -p "$PKI" "$CONF"
  chmod 700 "$PKI"
  fresh "$PKI/ca.crt" || {
    rm -f "$PKI"/*.crt   # all others are signed by the old one
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$PKI/ca.key" -out "$PKI/ca.crt" -days 3650 -subj /CN=local-cluster 2>/dev/null
  }
  [ -f "$PKI/sa.key" ] || openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
  # a machine that came back with another address needs another serving certificate
  [ ! -f "$PKI/apiserver.crt" ] || openssl x509 -in "$PKI/apiserver.crt" -noout -checkip "$IP" | grep -q 'does match' || rm "$PKI/apiserver.crt"
  certificate apiserver /CN=kube-apiserver "subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$API_SERVICE_IP,IP:$IP"
  certificate admin /O=system:masters/CN=admin
  certificate node "/O=system:nodes/CN=system:node:$NODE"
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  local user
  for user in admin node controller-manager scheduler proxy; do kubeconfig "$user"; done
}

fresh() { [ -f "$1" ] && openssl x509 -in "$1" -noout -checkend 604800 >/dev/null; }

certificate() {
  local file=$PKI/$1 subject=$2 extensions=${3:-basicConstraints=CA:FALSE}
  ! fresh "$file.crt" || return 0
  openssl req -newkey rsa:2048 -nodes -keyout "$file.key" -out "$file.csr" -subj "$subject" 2>/dev/null
  openssl x509 -req -in "$file.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -out "$file.crt" -days 365 \
    -extfile <(echo "$extensions") 2>/dev/null
}

kubeconfig() {
  local user=$1 target=$ROOT/$1.kubeconfig
  (
    umask 077
    cat >"$target" <<Y
apiVersion: v1
kind: Config
current-context: local
contexts: [{name: local, context: {cluster: local, user: $user}}]
clusters: [{name: local, cluster: {server: "https://$IP:$API_PORT", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: $user, user: {client-certificate-data: $(base64 -w0 "$PKI/$user.crt"), client-key-data: $(base64 -w0 "$PKI/$user.key")}}]
Y
  )
}
