"""The main job, from nothing to a preference-tuned adapter on a real cluster, as a person would want to see it.

    python hack/demo/run.py [--model ORG/NAME]     what `make demo` does
    python hack/demo/run.py --down                 what `make demo-down` does

It ends 0 only if the API server says that both jobs are Complete. The cluster stays, to look at.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from bringup import ROOT, cluster, empty_namespace, images, operator, run
from kube import apply, get_job, kubectl
from rich.console import Console
from rich.rule import Rule
from watch import follow

STATE = ROOT / ".demo"
NAMESPACE = "finetune-demo"
DATA, OUTPUTS = "finetune-data", "finetune-outputs"
SFT, DPO = ROOT / "examples" / "sft-lora.yaml", ROOT / "examples" / "dpo.yaml"
HUB_RESOURCES = {"cpu": "1", "memory": "10Gi"}
console = Console(highlight=False, soft_wrap=True)
T = TypeVar("T")


def main() -> None:
    """The demo's table of contents."""
    arguments = parsed()
    if arguments.down:
        down()
        return
    began = time.monotonic()
    step("A Kubernetes cluster", cluster)
    step("The operator's and the trainer's image", images)
    step("The operator, by its chart", operator, "settings.pollPeriodSeconds=2")
    step("A namespace that enforces the restricted pod security standard, with two volumes", namespace)
    step(
        "A tiny chat model and preference data" if not arguments.model else "Preference data", material, arguments.model
    )
    sft = step("SFT: kubectl apply -f examples/sft-lora.yaml", train, SFT, arguments.model)
    dpo = step("DPO from its checkpoint: kubectl apply -f examples/dpo.yaml", train, DPO, arguments.model)
    step("What the cluster says", show, (sft, dpo))
    step("Held-out pairs, before and after", judge, sft, dpo, arguments.model)
    console.print(f"\n[bold green]Done[/] in {minutes(time.monotonic() - began)}. The cluster stays to look at:")
    console.print('  eval "$(hack/cluster.sh env)"; kubectl -n finetune-demo get ftj,jobs,pods')
    console.print("  make demo-down   takes it away")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a Hub model instead of the tiny one; needs network to the Hub")
    parser.add_argument("--down", action="store_true", help="take the demo and its cluster away")
    return parser.parse_args()


def step(title: str, do: Callable[..., T], *arguments: object) -> T:
    """Do one part under its title."""
    console.print()
    console.print(Rule(f"[bold]{title}", align="left", style="cyan"))
    return do(*arguments)


def namespace() -> None:
    """Start from an empty namespace, so that a second run is a first one."""
    empty_namespace(NAMESPACE, (DATA, OUTPUTS))
    console.print(kubectl("-n", NAMESPACE, "get", "pvc"))


def material(model: str) -> None:
    """Make the data (and, without a Hub model, the model) and put it on the volume."""
    run(sys.executable, "hack/demo/material.py", str(STATE / "data"), *(["--no-model"] if model else []))
    run("hack/volume.sh", "put", DATA, NAMESPACE, str(STATE / "data"), quiet=True)


def train(example: Path, model: str) -> str:
    """Apply an example and follow it until it is final; the demo ends here unless it is Complete.

    Returns:
        The job's name.
    """
    name = apply(NAMESPACE, example, lambda spec: with_hub_model(spec, model) if model else spec)
    if not follow(NAMESPACE, name, console):
        sys.exit(f"{name} did not complete: kubectl -n {NAMESPACE} describe ftj {name}")
    return name


def with_hub_model(spec: dict[str, object], model: str) -> dict[str, object]:
    """The same job on a model of the Hub, at the size that it needs."""
    spec = {**spec, "resources": HUB_RESOURCES}
    return spec if "fromCheckpoint" in spec else {**spec, "model": model}


def show(jobs: tuple[str, ...]) -> None:
    """The table and the checkpoints, as kubectl and the status have them."""
    print(kubectl("-n", NAMESPACE, "get", "ftj", "-o", "wide"))
    for name in jobs:
        for point in get_job(NAMESPACE, name)["status"]["checkpoints"]:
            console.print(f"  {point['name']:<14} {point['type']:<13} {point['sizeBytes']:>10,} bytes  {point['uri']}")


def judge(sft: str, dpo: str, model: str) -> None:
    """Fetch the published files and judge them with plain transformers and peft."""
    for name in (sft, dpo):
        job = get_job(NAMESPACE, name)
        folder = job["status"]["output"]["adapterUri"].split("/", 3)[3].rsplit("/", 1)[0]
        run("hack/volume.sh", "get", OUTPUTS, NAMESPACE, folder, str(STATE / name), quiet=True)
    base = model or str(STATE / "data" / "tiny-chat")
    run(
        sys.executable,
        "hack/demo/evaluate.py",
        base,
        str(STATE / sft),
        str(STATE / dpo),
        str(STATE / "data" / "eval.jsonl"),
    )


def down() -> None:
    """Take the cluster, its state and the demo's files away; built binaries and images stay."""
    run("hack/cluster.sh", "down", "--wipe")
    shutil.rmtree(STATE, ignore_errors=True)


def minutes(seconds: float) -> str:
    """3 min 20 s."""
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


if __name__ == "__main__":
    main()
