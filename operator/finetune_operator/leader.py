"""One of several operators works, the others stand by: who holds a Lease, by the API server's own preconditions.

The client library's election leaves its requests without a deadline, so a leader whose API server hangs would go on
past the time at which another takes over. Here the one clock that counts is the leader's own: it starts before the
request is sent, and whoever cannot renew in time stops before the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from finetune_operator.client import LEASES, AlreadyExists, Cluster, ClusterError, Conflict, Manifest, NotFound
from finetune_operator.settings import LeaderElection

LOG = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another works now, or may do so any moment: whoever held the lease must end at once."""


class Leader:
    """A candidate for the lease.

    Args:
        identity: tells this process from every other, before and after.
        clock: seconds that only grow.
        now: the time of day, for people who read the Lease.
    """

    def __init__(
        self,
        cluster: Cluster,
        election: LeaderElection,
        identity: str,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._cluster, self._election, self._identity = cluster, election, identity
        self._clock, self._now = clock, now
        self._lease: Manifest = {}
        """As the API server last gave it to us."""
        self._seen = (("", ""), 0.0)
        """Holder and renewal of the lease, and when it was first seen so."""
        self._renewed: float | None = None
        """Before the last renewal was sent; None = it is not ours."""

    def leads(self) -> bool:
        """Whether nobody else can have the lease at this moment."""
        return self._renewed is not None and self._left() > 0

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        LOG.info("standing by for Lease %s/%s", self._election.namespace, self._election.name)
        while True:
            started = self._clock()
            try:
                async with asyncio.timeout(self._election.renew_deadline_seconds):
                    taken = await self._try()
            except (ClusterError, TimeoutError) as error:
                LOG.warning("the lease cannot be asked for: %s", error)
                taken = False
            if taken:
                self._renewed = started
                LOG.info("took Lease %s/%s as %s", self._election.namespace, self._election.name, self._identity)
                return
            await asyncio.sleep(self._election.retry_period_seconds)

    async def hold(self) -> None:
        """Renew the lease until it is lost.

        Raises:
            LeaseLost
        """
        while True:
            await asyncio.sleep(max(0.0, min(self._election.retry_period_seconds, self._left())))
            started, left = self._clock(), self._left()
            if left <= 0:
                raise LeaseLost(f"it should have been renewed {-left:.1f} s ago")
            try:
                async with asyncio.timeout(left):
                    await self._renew()
            except (ClusterError, TimeoutError) as error:
                LOG.warning("the lease was not renewed: %s", error or "no answer in time")
            else:
                self._renewed = started

    async def release(self) -> None:
        """Give the lease back, so that another need not wait for its end."""
        self._renewed = None
        try:
            async with asyncio.timeout(self._election.retry_period_seconds):
                await self._write(holder="")
        except (ClusterError, TimeoutError) as error:
            LOG.warning("the lease was not given back: %s", error)

    def _left(self) -> float:
        """Seconds in which the lease must be renewed."""
        return (self._renewed or 0.0) + self._election.renew_deadline_seconds - self._clock()

    async def _try(self) -> bool:
        """Take the lease if nobody has it, or its holder has not renewed it for as long as it promised."""
        try:
            self._lease = await self._cluster.get(LEASES, self._election.namespace, self._election.name)
        except NotFound:
            return await self._create()
        if not self._is_free(self._lease.get("spec") or {}):
            return False
        try:
            await self._write(holder=self._identity)
        except Conflict:
            return False
        return True

    def _is_free(self, spec: dict[str, Any]) -> bool:
        """Judged by our own clock alone: the time of day of two machines may differ."""
        holder = spec.get("holderIdentity") or ""
        state = (holder, str(spec.get("renewTime")))
        if state != self._seen[0]:
            self._seen = (state, self._clock())
        promised = max(float(spec.get("leaseDurationSeconds") or 0), self._election.lease_duration_seconds)
        # Ours, if the answer to our taking it was lost: each process has an identity of its own.
        return holder in ("", self._identity) or self._clock() - self._seen[1] > promised

    async def _create(self) -> bool:
        metadata = {"namespace": self._election.namespace, "name": self._election.name}
        lease = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": metadata}
        try:
            self._lease = await self._cluster.create(LEASES, {**lease, "spec": self._spec(self._identity)})
        except AlreadyExists:
            return False
        return True

    async def _renew(self) -> None:
        try:
            await self._write(holder=self._identity)
        except (Conflict, NotFound):
            # Ours, if an answer to an earlier write of our own was lost; else somebody has taken or removed it.
            self._lease = await self._cluster.get(LEASES, self._election.namespace, self._election.name)
            holder = (self._lease.get("spec") or {}).get("holderIdentity")
            if holder != self._identity:
                raise LeaseLost(f"{holder or 'nobody'} holds it") from None
            await self._write(holder=self._identity)

    async def _write(self, holder: str) -> None:
        """Replace the lease, if it is as we last saw it."""
        self._lease = await self._cluster.replace(LEASES, {**self._lease, "spec": self._spec(holder)})

    def _spec(self, holder: str) -> dict[str, Any]:
        before = self._lease.get("spec") or {}
        moment = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        taken = holder != before.get("holderIdentity")
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": round(self._election.lease_duration_seconds),
            "acquireTime": moment if taken else before.get("acquireTime", moment),
            "renewTime": moment,
            "leaseTransitions": before.get("leaseTransitions", 0) + (1 if taken and holder else 0),
        }
