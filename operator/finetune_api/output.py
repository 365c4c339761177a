"""Where the result of a job goes."""

from __future__ import annotations

from finetune_api.base import ApiModel, Flag
from finetune_api.uris import OutputUri


class Output(ApiModel):
    """Where the result goes."""

    uri: OutputUri | None = None
    """Folder of the result, `pvc://claim/path`. Absent = the runtime's default."""
    merge: Flag | None = None
    """True also publishes, in `merged/`, full weights with the trained adapter merged into its base. Needs type
    LoRA. Absent = false."""
