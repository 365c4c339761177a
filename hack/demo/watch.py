"""Follow a FineTuneJob in the terminal: one live line of progress, and a lasting line for each thing that happened."""

from __future__ import annotations

import time
from typing import Any

from kube import get_job
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PERIOD_SECONDS = 1.0
TIMEOUT_SECONDS = 3600.0


def follow(namespace: str, name: str, console: Console) -> bool:
    """Show the job's progress until it is final; True when it completed."""
    columns = (
        TextColumn("[bold]{task.description:<10}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    told: list[str] = []
    end = time.monotonic() + TIMEOUT_SECONDS
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task("Pending", total=100, numbers="")
        while time.monotonic() < end:
            status = get_job(namespace, name).get("status", {})
            for line in news(status)[len(told) :]:
                bar.console.print(line)
                told.append(line)
            progress = status.get("progress") or {}
            phase = status.get("phase", "Pending")
            bar.update(task, description=phase, completed=progress.get("percentage", 0), numbers=numbers(status))
            if phase in ("Completed", "Failed", "Cancelled"):
                return phase == "Completed"
            time.sleep(PERIOD_SECONDS)
    return False


def numbers(status: dict[str, Any]) -> str:
    """Step, loss and reward accuracy, as far as they are known."""
    progress, metrics = status.get("progress") or {}, status.get("metrics") or {}
    parts = [f"step {progress['display']}"] if progress.get("totalSteps") else []
    if (loss := metrics.get("train", {}).get("loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (accuracy := metrics.get("eval", {}).get("rewardAccuracy")) is not None:
        parts.append(f"held-out reward accuracy {accuracy:.2f}")
    if (left := progress.get("estimatedRemainingSeconds")) is not None:
        parts.append(f"{left} s left")
    return "  ".join(parts)


def news(status: dict[str, Any]) -> list[str]:
    """What has happened so far, in the order in which it happens."""
    lines: list[str] = []
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    if conditions.get("Accepted", {}).get("status") == "True":
        lines.append(f"  accepted   id {status.get('id')}")
    data = status.get("data") or {}
    if conditions.get("DataReady", {}).get("status") == "True":
        lines.append(
            f"  data       {data.get('rows')} rows, {data.get('totalTokens')} tokens an epoch, {data.get('format')}"
        )
    for point in status.get("checkpoints", []):
        lines.append(f"  checkpoint {point['name']}")
    for kind in ("Complete", "Failed"):
        if conditions.get(kind, {}).get("status") == "True":
            lines.append(f"  {kind.lower():<10} {conditions[kind].get('message', '')}")
    return lines
