"""``PerClassIoUMetric``: mIoU, with IoU and accuracy of each class."""

from __future__ import annotations

from typing import Any

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class PerClassIoUMetric(IoUMetric):
    """``IoUMetric`` that keeps its sums over the images; mmseg only logs the figures of each class.

    Attributes:
        areas: Pixels of each class in the intersection, the union, the predictions and the labels, each of shape
            ``(C,)``; set on the main process after an evaluation.
    """

    areas: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute the metrics of ``IoUMetric`` and keep ``areas``."""
        if not self.format_only:
            self.areas = tuple(sum(area) for area in zip(*results))
        return super().compute_metrics(results)

    def classes(self) -> list[dict[str, Any]]:
        """``name``, ``IoU`` and ``Acc`` of each class, in percent; ``None`` for a class that does not occur.

        Raises:
            ValueError: Nothing was evaluated on this process.
        """
        if self.areas is None:
            raise ValueError('PerClassIoUMetric.classes: evaluate first, and read it on the main process')
        intersect, union, _, label = (area.double() for area in self.areas)
        table = zip(self.dataset_meta['classes'], 100 * intersect / union, 100 * intersect / label)
        return [dict(name=name, IoU=_percent(iou), Acc=_percent(acc)) for name, iou, acc in table]


def _percent(value: Tensor) -> float | None:
    return None if value.isnan() else round(value.item(), 2)
