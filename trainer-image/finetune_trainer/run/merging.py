"""output.merge: the final adapter is also published merged into its base, if the merge is what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from finetune_api.failures import FailureCode
from finetune_api.report import WarningCode
from finetune_api.trainer import TrainerConfig
from finetune_trainer.data.tokens import Pair, TokenCache
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.layout import Layout
from finetune_trainer.out.merge import Merger
from finetune_trainer.step.likeness import Likeness, likeness
from finetune_trainer.step.model import Policy
from finetune_trainer.step.stored import StoredLayer, stored_layers
from finetune_trainer.step.weights import StartFolders

PROBE_ROWS, PROBE_TOKENS = 4, 64
"""Rows of the training data on whose logits the merge is measured, and the last tokens of each."""
MOST_ERROR, LOSSY = 1e-3, 0.2
"""Largest mergeError where the base is kept in fp32, and the one above which casting to less is worth a warning."""


@dataclass(frozen=True, slots=True)
class Merging:
    """What merging needs after training, when the policy is gone."""

    start: StartFolders
    adapter: Path
    """Where the final adapter will be published."""
    layers: Mapping[str, StoredLayer]
    probes: tuple[Tensor, ...]
    """Token ids, int64 [length] each."""
    device: torch.device

    def save(self, folder: Path) -> float:
        """Write the merged weights into `folder` and return their mergeError.

        Raises:
            RunFailed: MergeFailed.
            OSError: a file cannot be read or written.
        """
        merger = Merger(self.start.base, self.start.base_name, self.adapter, self.layers)
        whole = merger.write(folder)
        try:
            measured = likeness(self.start, self.adapter, folder, self.probes, self.device)
        except RunFailed as end:
            raise failed(FailureCode.MERGE_FAILED, model=merger.model, problem=end.failure.sentence) from end
        if problem := problem_of(measured, whole):
            raise failed(FailureCode.MERGE_FAILED, model=merger.model, problem=problem)
        return measured.merge_error


def prepare_merging(
    config: TrainerConfig, layout: Layout, policy: Policy, start: StartFolders, cache: TokenCache
) -> Merging | None:
    """What the end of the job needs to merge, None where it does not; said before training if it cannot be done.

    Raises:
        RunFailed: ConfigInvalid: the files of the base do not hold the adapted layers as such.
    """
    if not config.merge:
        return None
    assert isinstance(policy.root, PeftModel)
    probes = tuple(_probe(cache, row) for row in range(min(PROBE_ROWS, len(cache))))
    # A base that is spread, because it is too large for a GPU, is compared in the memory of the host.
    device = torch.device("cpu") if policy.sharded else policy.device
    return Merging(start, layout.final, stored_layers(policy.root, start.base), probes, device)


def problem_of(measured: Likeness, whole: bool) -> str | None:
    """Why merged weights must not be published, None if they may.

    Args:
        whole: no adapted weight was cast to less than fp32.
    """
    error = measured.merge_error
    if not all(np.isfinite((measured.difference, measured.effect, error))):
        return "its logits are not finite or have changed although the adapter changes none"
    if whole and error > MOST_ERROR and not measured.is_rounding:
        return f"mergeError is {error:.3g}, at most {MOST_ERROR:g} is right for weights in fp32"
    return None


def lossy(error: float) -> tuple[WarningCode, str] | None:
    """The warning about a merge that lost much by its cast, None where there is nothing to say."""
    if error <= LOSSY:
        return None
    message = (
        f"mergeError is {error:.2g}: the precision of the base is too coarse for what was learned; serve the adapter"
        " itself, or train longer or with a higher learningRate"
    )
    return WarningCode.MERGE_LOSSY, message


def _probe(cache: TokenCache, row: int) -> Tensor:
    found = cache[row]
    tokens = np.concatenate((found.prompt, found.preferred)) if isinstance(found, Pair) else found.tokens
    return torch.from_numpy(tokens[-PROBE_TOKENS:].astype(np.int64))
