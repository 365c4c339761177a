"""The run's curves as they grow: a bounded sketch of what metrics.jsonl holds in full, for the status."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.history import CURVES, MAX_POINTS, History, Series, thinned


class Curves:
    """Collects points and keeps few of them."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {}

    def add(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Take up the values of a step that have a curve.

        Args:
            stage: train or eval.
            values: by the names of the status, finite.
        """
        for name, value in values.items():
            curve = f"{stage}/{name}"
            if curve not in CURVES:
                continue
            points = self._points.setdefault(curve, [])
            points.append((step, float(value)))
            if len(points) > 2 * MAX_POINTS:
                points[:] = thinned(points)

    def history(self) -> History:
        """What there is so far."""
        # Built without checks, because it is done after every step and the values are our own.
        return History.model_construct(
            series=tuple(
                Series.model_construct(name=name, points=thinned(self._points[name]))
                for name in CURVES
                if name in self._points
            )
        )
