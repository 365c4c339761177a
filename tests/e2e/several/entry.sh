#!/bin/sh
# Data needs no preparing here. Training is plain torchrun, which ends with 1 for whatever cause; what is lost here is
# always a peer, so that the pod says what the trainer would.
[ "$1" = prepare ] && exit 0
torchrun /test/all_reduce.py || exit 4
