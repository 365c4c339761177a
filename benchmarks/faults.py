"""How long the operator needs after each fault between it and the API server, with the settings that the chart ships.

    python benchmarks/faults.py [--seconds 30]

Each fault lasts so long; while it does, a job that trains comes to its end and another is applied. Recovered means that
both are told of in their statuses. The faults are those of tests/integration/test_faults.py, which also asserts that
nothing is lost. Writes faults.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import installed
from apiserver import control_plane
from faults import FAULTS, ground
from finetune_operator.first_runtime import default_runtime
from world import furnish


def main() -> None:
    """Run, tell and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    rows = []
    with tempfile.TemporaryDirectory() as name, control_plane(Path(name) / "plane") as plane:
        installed.kinds(plane)
        plane.kubectl("create", "namespace", "faults")
        plane.kubectl("create", "-f", "-", stdin=json.dumps(default_runtime("trainer:1")))
        furnish(plane.api(), "faults")
        with ground(plane, "faults", Path(name), {}, seconds) as standing:
            standing.train(list(FAULTS))
            for fault in FAULTS:
                found = standing.through(fault)
                rows.append(f"| {fault.replace('-', ' ')} | {found.seconds:.1f} s | {found.requests:.1f} |")
                print(rows[-1], flush=True)
    versions = f"Python {sys.version.split()[0]}, kopf {version('kopf')}, kubernetes {version('kubernetes')}"
    text = (
        f"# Faults between the operator and the API server\n\n{date.today()}; {versions}; shipped settings, a real API"
        f" server behind a proxy. Each fault lasts {seconds:.0f} s, with {len(FAULTS)} jobs there at first, one more"
        " finished and one more applied in each; nothing is lost in any. Recovered: from the fault's end until both are"
        " told of in their statuses. Written by `make bench-faults`.\n\n"
        "| fault | recovered after | requests a second while it lasts |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    (Path(__file__).parent / "faults.md").write_text(text)


if __name__ == "__main__":
    main()
