"""From a URI to a path on a mounted volume, and never to a path outside it.

A volume is written by people whom the run does not trust: a symlink in it must not lead to another job's files or to
the image's own. So a path is resolved first and then judged by where it really lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune_api.uris import parse_uri


class OutsideVolume(Exception):
    """A URI that names no place on a mounted volume; the text says why, in words for the user."""


def locate(uri: str, mounts: Mapping[str, str]) -> Path:
    """The real path of a `pvc://`, `configmap://` or `file://` URI, whether or not anything is there yet.

    Raises:
        OutsideVolume: the volume is not mounted, or a symlink leads out of it.
    """
    parts = parse_uri(uri)
    if parts.scheme == "file":
        return Path(parts.path).resolve()
    if parts.volume not in mounts:
        raise OutsideVolume(f"{parts.volume} is not mounted")
    root = Path(mounts[parts.volume]).resolve()
    path = (root / parts.path).resolve()
    if not path.is_relative_to(root):
        raise OutsideVolume(f"a symbolic link leads out of {parts.volume}")
    return path


def locate_folder(uri: str, mounts: Mapping[str, str]) -> Path:
    """`locate` for a folder that is read file by file: none of its entries may lead out of the volume either.

    Raises:
        OutsideVolume: as `locate`, or an entry is a symlink that leads out of the volume.
    """
    folder = locate(uri, mounts)
    parts = parse_uri(uri)
    if parts.scheme != "file" and folder.is_dir():
        root = Path(mounts[parts.volume]).resolve()
        for entry in folder.iterdir():
            if not entry.resolve().is_relative_to(root):
                raise OutsideVolume(f"{entry.name} is a symbolic link that leads out of {parts.volume}")
    return folder
