# Starting and stopping our own processes, and never anybody else's. Sourced by hack/cluster.sh.
# shellcheck shell=bash
#
# A recorded process is "PID START-TICKS BOOT". The kernel reuses process ids but not the triple, so a stale file, left by a
# crash or a reboot, can never make us signal, or take for running, a stranger.

need_root() { [ "$(id -u)" = 0 ] || die "a node needs root: run it with sudo, or set CLUSTER=kind where Docker works"; }

# One `up` or `down` at a time. Daemons must not inherit the lock: start() closes it for them.
take_lock() {
  mkdir -p "$ROOT" || die "cannot write $ROOT: be root, or set CLUSTER_ROOT"
  exec 9>"$ROOT/lock"
  flock -n 9 || { say "another hack/cluster.sh is at work, waiting for it"; flock 9; }
}

identity() {  # of a live pid: "START-TICKS BOOT"
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  set -- ${stat##*) }   # the name in parentheses may contain blanks, so count from behind it
  [ "$1" != Z ] || return 1
  echo "${20} $(cat /proc/sys/kernel/random/boot_id)"
}

pid_of() { cut -d' ' -f1 "$RUN/$1.pid"; }

running() {
  local pid recorded
  { read -r pid recorded <"$RUN/$1.pid"; } 2>/dev/null || return 1
  [ "$(identity "$pid")" = "$recorded" ]
}

all_running() {
  local name
  for name in "${COMPONENTS[@]}"; do running "$name" || return 1; done
}

# start NAME COMMAND...: in its own session, log in LOGS/NAME.log, the log before it kept as NAME.log.old.
start() {
  local name=$1 log=$LOGS/$1.log
  shift
  running "$name" && return
  mkdir -p "$LOGS" "$RUN"
  [ ! -f "$log" ] || mv -f "$log" "$log.old"
  setsid "$@" >"$log" 2>&1 </dev/null 9>&- &
  echo "$! $(identity $!)" >"$RUN/$name.pid"
}

# Another program behind NAME's port would answer in its place and, if it is another cluster's etcd, be written to.
refuse_taken_port() {
  if ! running "$1" && (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then
    die "port $2 of $1 is taken by another program; is a cluster with another CLUSTER_ROOT up?"
  fi
}

# await NAME SECONDS COMMAND...: until COMMAND succeeds; fails at once, with the log's end, when NAME has died.
await() {
  local name=$1 tries=$(($2 * 5))
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    running "$name" || { say; tail -n 15 "$LOGS/$name.log" >&2; die "$name ended; its log is $LOGS/$name.log"; }
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { say; tail -n 15 "$LOGS/$name.log" >&2; die "gave up waiting for $name ($*); log: $LOGS/$name.log"; }
    sleep 0.2
  done
}

# stop NAME...: all asked to end first, then awaited together; what is left after 20 s is killed.
stop() {
  local name tries=100
  for name in "$@"; do ! running "$name" || kill "$(pid_of "$name")"; done
  for name in "$@"; do
    while running "$name" && [ $tries -gt 0 ]; do tries=$((tries - 1)); sleep 0.2; done
    ! running "$name" || kill -KILL "$(pid_of "$name")"
    rm -f "$RUN/$name.pid"
  done
}
