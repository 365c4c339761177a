"""Several pods that train as one are one attempt: which of them belong together, and which speaks for all.

A lost pod ends its peers, and the Job makes each anew; so what is counted, told and blamed is the round, by the pod
that ended it. With one node each pod is a round of its own, and nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from finetune_api.status import Reason
from finetune_api.trainer import NOT_RETRIED, ExitCode
from finetune_operator.plan.state import Pod, Waiting


def speakers(pods: tuple[Pod, ...], nodes: int) -> tuple[Pod, ...]:
    """One pod for each round, oldest first; the names of the others are its `peers`.

    Args:
        pods: all of one Job, oldest first.
    """
    if nodes == 1:
        return pods
    rounds = _rounds(pods)
    return tuple(_speaker(members, nodes, newest=members is rounds[-1]) for members in rounds)


def outlived(pods: tuple[Pod, ...], known: Collection[str]) -> frozenset[str]:
    """The pods of the rounds before the newest one that the status knows: what they said is in it already, and was true
    then.

    Args:
        pods: the speakers, oldest first.
        known: names of the pods whose attempts are written down.
    """
    names = [{pod.name, *pod.peers} for pod in pods]
    newest = max((place for place, members in enumerate(names) if not members.isdisjoint(known)), default=0)
    return frozenset().union(*names[:newest])


def _rounds(pods: tuple[Pod, ...]) -> list[list[Pod]]:
    rounds: list[list[Pod]] = []
    for pod in pods:
        if rounds and not _opens_the_next(rounds[-1], pod):
            rounds[-1].append(pod)
        else:
            rounds.append([pod])
    return [sorted(members, key=lambda pod: pod.index or 0) for members in rounds]


def _opens_the_next(members: list[Pod], pod: Pod) -> bool:
    """A pod that takes another's place, or is made after one of them was lost, begins anew with those that follow."""
    lost = [member.ended for member in members if member.ended and member.exit_code != 0]
    return any(member.index == pod.index for member in members) or (bool(lost) and pod.created > min(lost))


def _speaker(members: list[Pod], nodes: int, *, newest: bool) -> Pod:
    """Who says how the round is: index 0 when it has done well, else who ended it, else who holds it up."""
    ended = [pod for pod in members if pod.ended]
    causes = [pod for pod in ended if pod.exit_code not in (ExitCode.DONE, ExitCode.PEER_LOST)]
    peers = [pod for pod in ended if pod.exit_code == ExitCode.PEER_LOST]
    going = [pod for pod in members if not pod.ended]
    held_up = [pod for pod in going if pod.waiting]
    if members[0].index == 0 and members[0].ended and members[0].exit_code == 0:
        chosen = members[0]
    elif causes:
        chosen = min(causes, key=lambda pod: (pod.exit_code not in NOT_RETRIED, pod.ended or ""))
    elif peers and not (newest and going):
        chosen = peers[0]
    else:
        chosen = (held_up or going or members)[0]
    if newest and not ended and len(members) < nodes and not held_up:
        waiting = Waiting(Reason.INITIALIZING, f"{len(members)} of {nodes} pods are there")
        chosen = replace(chosen, running=False, waiting=waiting)
    return replace(chosen, peers=frozenset(pod.name for pod in members if pod is not chosen and pod.uid != chosen.uid))
