"""The runtime that a fresh cluster gets, so that the first job needs nothing but itself."""

from __future__ import annotations

import asyncio
import logging
from importlib.resources import files
from typing import Any

from ruamel.yaml import YAML

from finetune_operator.client import RUNTIMES, AlreadyExists, Cluster, ClusterError, Refused

LOG = logging.getLogger(__name__)
RETRY_SECONDS = 10.0


def default_runtime(image: str) -> dict[str, Any]:
    """The manifest in the package, with the trainer image of this installation."""
    text = files("finetune_operator").joinpath("default_runtime.yaml").read_text(encoding="utf-8")
    manifest: dict[str, Any] = YAML(typ="safe").load(text)
    manifest["spec"]["image"] = image
    return manifest


async def ensure_default_runtime(image: str, cluster: Cluster) -> None:
    """Make the default runtime if there is none of any name; wait until that can be told."""
    while True:
        try:
            if not await cluster.list(RUNTIMES):
                await cluster.create(RUNTIMES, default_runtime(image))
                LOG.info("made FineTuneRuntime default with image %s", image)
            return
        except AlreadyExists:
            return
        except Refused as refusal:
            LOG.warning("the default FineTuneRuntime was not made: %s", refusal)
            return
        except ClusterError as error:
            LOG.info("the default FineTuneRuntime has to wait: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
