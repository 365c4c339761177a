"""Where the result of a job goes."""

from __future__ import annotations

from finetune_api.base import ApiModel, Flag
from finetune_api.uris import HubRepo, OutputUri


class Output(ApiModel):
    """Where the result goes."""

    uri: OutputUri | None = None
    """Folder of the result: `pvc://claim/path`, or `s3://bucket/path`, `gs://bucket/path`, `az://container/path` with
    an entry in the runtime's access.uriPrefixes.write. Absent = the runtime's default."""
    merge: Flag | None = None
    """True also publishes, in `merged/`, full weights with the trained adapter merged into its base. Needs type
    LoRA. Absent = false."""
    hf_repo: HubRepo | None = None
    """Repository org/name of the Hugging Face Hub to which the final weights are pushed as well, in one commit: the
    merged ones with merge, else the adapter or the model. It is made, private, where it is missing. Needs
    hfTokenSecretRef, and hf://org/ in the runtime's access.uriPrefixes.write."""
