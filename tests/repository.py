"""What is in the repository: the files that git tracks, whatever else lies beside them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from manifests import ROOT


def tracked(*patterns: str) -> list[Path]:
    """Tracked text files, relative to the root, that match one of the patterns (all without)."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, check=True)
    paths = [Path(name.decode()) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]
