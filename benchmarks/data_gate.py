"""The data gate at scale: rows per second and peak memory of `finetune-train check`, children included.

    python benchmarks/data_gate.py [--rows 100000 1000000] [--model] [--folder DIR]

Rows are made of words drawn with a fixed seed, about 1 kB each, every hundredth a repetition. `--model` also renders
and tokenises them with a small tokenizer made here, which shows what rendering adds; a real one is a matter of its
merges. Memory is the kernel's own peak (VmHWM) of the process and of all below it, added up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.05
REPEATED = 100
WORDS = [a + b + c for a in ("ka", "lo", "mi", "ne", "ru") for b in ("da", "st", "ve", "or") for c in ("n", "l", "s")]


def write_rows(path: Path, count: int) -> None:
    """Preference rows of about 1 kB."""
    words = random.Random(1)
    line = ""
    with path.open("w") as file:
        for number in range(count):
            if number % REPEATED or not line:
                prompt, better, worse = (" ".join(words.choices(WORDS, k=size)) for size in (50, 45, 45))
                row = {
                    "input": {"messages": [{"role": "user", "content": f"{number}: {prompt}"}]},
                    "preferred_output": [{"role": "assistant", "content": better}],
                    "non_preferred_output": [{"role": "assistant", "content": worse}],
                }
                line = json.dumps(row) + "\n"
            file.write(line)


def check(path: Path, *options: str) -> dict[str, float]:
    """Run the command on `path`: seconds, rows, peak resident bytes."""
    command = [sys.executable, "-m", "finetune_trainer", "check", str(path), "--json", *options]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "trainer-image"))
    environment = {**os.environ, "PYTHONPATH": paths}
    begun = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, env=environment)
        peaks: dict[int, int] = {}
        while process.poll() is None:
            peaks |= {pid: peak for pid in _tree(process.pid) if (peak := _peak(pid))}
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - begun
        out.seek(0)
        report = json.load(out)
    if process.returncode:
        raise SystemExit(f"the check of {path} ended with {process.returncode}")
    return {"seconds": seconds, "rows": report["rows"], "peak": sum(peaks.values())}


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _peak(pid: int) -> int:
    """Bytes; 0 once the process has ended."""
    try:
        found = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="rows per second and memory of the data gate")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--model", action="store_true", help="render and tokenise too")
    parser.add_argument("--folder", type=Path, help="where the rows are written; absent = a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), sorted(given.rows), given.model)


def measure(folder: Path, sizes: list[int], model: bool) -> None:
    """Print one line for each size, then what each further row costs in memory."""
    options = ("--model", str(_model(folder)), "--method", "DPO") if model else ()
    found = []
    for count in sizes:
        file = folder / "rows.jsonl"
        write_rows(file, count)
        size = file.stat().st_size
        result = check(file, *options)
        found.append(result)
        speed, peak = result["rows"] / result["seconds"], result["peak"] / 2**20
        print(f"{count} rows, {size / 1e6:.0f} MB: {result['seconds']:.1f} s, {speed:.0f} rows/s, peak {peak:.0f} MiB")
        sys.stdout.flush()
    if len(found) > 1:
        grown, rows = found[-1]["peak"] - found[0]["peak"], found[-1]["rows"] - found[0]["rows"]
        print(f"{grown / rows:.1f} bytes a row more from {sizes[0]} to {sizes[-1]} rows")


def _model(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from rows import save_light_model

    return save_light_model(folder / "model", max_position_embeddings=100_000)


if __name__ == "__main__":
    main()
