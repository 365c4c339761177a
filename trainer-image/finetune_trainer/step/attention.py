"""Attention over sequences that lie end to end in one line, some of them going on from another one's prefix.

Registered once with transformers under a name of its own and without a mask function: under the built-in names, jumping
positions are taken for packed sequences, which silently cuts an answer off from its prompt (sdpa, eager) or lets it see
the other answer (flash_attention_2). The layout travels to every layer as extra arguments of the model's forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from finetune_trainer.step.precision import computed_in

PREF_VARLEN = "pref_varlen"
ASKS_FOR_MORE = ("softcap", "s_aux", "position_bias", "indices", "block_indices")
"""Arguments by which a layer asks for more than masked softmax attention."""
KERNEL_TYPES = torch.bfloat16, torch.float16


class AttentionUnsupported(Exception):
    """A model's attention is more than this one does, or it cannot be replaced; says why."""


class Segment(NamedTuple):
    """Tokens that attend causally to themselves, and before that to a prefix that lies elsewhere in the line."""

    prefix_start: int
    prefix: int
    """Tokens of the prefix; 0: none."""
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Who sees whom in a pass: segments end to end; the tensors say the same as a varlen kernel wants it."""

    segments: tuple[Segment, ...]
    cu_q: Tensor
    """int32 [segments + 1]: where each segment's queries begin; the last entry is their number."""
    cu_k: Tensor
    """int32 [segments + 1]: the same of its keys, prefix included, after `k_index`."""
    k_index: Tensor | None
    """int64 [keys]: the token of each key; None: keys are the tokens as they lie."""
    max_q: int
    max_k: int

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Layout:
        """The layout of segments that follow each other without a gap."""
        queries = np.array([s.length for s in segments])
        keys = np.array([s.prefix + s.length for s in segments])
        shared = any(s.prefix for s in segments)
        places = [
            np.arange(first, first + count)
            for s in segments
            for first, count in ((s.prefix_start, s.prefix), (s.start, s.length))
        ]
        return cls(
            segments=tuple(segments),
            cu_q=torch.from_numpy(np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)),
            cu_k=torch.from_numpy(np.concatenate([[0], np.cumsum(keys)]).astype(np.int32)),
            k_index=torch.from_numpy(np.concatenate(places)) if shared else None,
            max_q=int(queries.max()),
            max_k=int(keys.max()),
        )

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return replace(
            self,
            cu_q=self.cu_q.to(device, non_blocking=True),
            cu_k=self.cu_k.to(device, non_blocking=True),
            k_index=None if self.k_index is None else self.k_index.to(device, non_blocking=True),
        )

    def pinned(self) -> Layout:
        """The same in memory from which a GPU copies while the program goes on."""
        return replace(
            self,
            cu_q=self.cu_q.pin_memory(),
            cu_k=self.cu_k.pin_memory(),
            k_index=None if self.k_index is None else self.k_index.pin_memory(),
        )

    def arguments(self) -> dict[str, Any]:
        """What the model's forward gets besides tokens and positions."""
        return {
            "pref_segments": self.segments,
            "pref_cu_q": self.cu_q,
            "pref_cu_k": self.cu_k,
            "pref_k_index": self.k_index,
            "pref_max_q": self.max_q,
            "pref_max_k": self.max_k,
        }


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """One layer's attention, as transformers calls it.

    Args:
        query: [1, heads, tokens, width].
        key, value: [1, key heads, tokens, width].
        given: the layout's arguments, and the layer's own, of which `sliding_window` is honoured.

    Returns:
        [1, tokens, heads, width].

    Raises:
        AttentionUnsupported: the layer asks for what is not done here.
    """
    if asked := [name for name in ASKS_FOR_MORE if given.get(name) is not None]:
        raise AttentionUnsupported(f"its attention needs {', '.join(asked)}")
    if attention_mask is not None:
        raise AttentionUnsupported("its attention has a mask of its own")
    if "pref_segments" not in given:
        raise AttentionUnsupported("its attention gets no layout")
    window = given.get("sliding_window")
    if query.device.type == "cuda":
        computed = computed_in(query, query.dtype)
        if computed in KERNEL_TYPES:
            query, key, value = query.to(computed), key.to(computed), value.to(computed)
            return _varlen(query, key, value, scaling, window, given), None
    return _sliced(query, key, value, scaling, window, given["pref_segments"]), None


AttentionInterface.register(PREF_VARLEN, attention)


def _sliced(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None, segments: tuple[Segment, ...]
) -> Tensor:
    """Segment by segment through torch's own attention, on any device and in any precision.

    Tensors are split and not sliced: the gradient of a split is one concatenation, that of each slice as long as all.
    """
    grouped = query.shape[1] != key.shape[1]
    lengths = [segment.length for segment in segments]
    number = {segment.start: place for place, segment in enumerate(segments)}
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    parts = []
    for place, segment in enumerate(segments):
        own, seen = (keys[place], values[place]), segment.prefix + segment.length
        if segment.prefix:
            first = number[segment.prefix_start]
            before = (keys[first][:, :, : segment.prefix], values[first][:, :, : segment.prefix])
            own = torch.cat([before[0], own[0]], dim=2), torch.cat([before[1], own[1]], dim=2)
        reach = window if window is not None and window < seen else None
        causal = not segment.prefix and reach is None
        mask = None if causal else _mask(segment.length, segment.prefix, reach, query.device)
        parts.append(
            scaled_dot_product_attention(
                queries[place], *own, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _mask(length: int, prefix: int, window: int | None, device: torch.device) -> Tensor:
    """Which of prefix + length keys each of the last `length` tokens sees, bool [length, prefix + length]."""
    seen = torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(prefix)
    return seen if window is None else seen.triu(prefix - window + 1)


@lru_cache(maxsize=1)
def _varlen_arguments() -> frozenset[str]:
    """What this torch's `varlen_attn` can be told; it is young and its arguments still move."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None, layout: dict[str, Any]
) -> Tensor:
    """All segments in one call; causal is bottom-right aligned, so a window ends at each query's own key."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if (index := layout["pref_k_index"]) is not None:
        keys, values = keys.index_select(0, index), values.index_select(0, index)
    known = _varlen_arguments()
    options: dict[str, Any] = {"scale": scale}
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise AttentionUnsupported("its attention has a sliding window, which this version of torch cannot do")
    if queries.shape[1] != keys.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            groups = queries.shape[1] // keys.shape[1]
            keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    ends, limits = (layout["pref_cu_q"], layout["pref_cu_k"]), (layout["pref_max_q"], layout["pref_max_k"])
    out: Any = varlen_attn(queries, keys, values, *ends, *limits, **options)
    return out[None]  # type: ignore[no-any-return]
