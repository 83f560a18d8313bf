"""``PerClassIoUMetric``: mIoU, with the figures of each class."""

from __future__ import annotations

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class PerClassIoUMetric(IoUMetric):
    """``IoUMetric`` that keeps its sums over the images; mmseg's only logs what they give for each class.

    On the main process, after an evaluation: ``areas``, the pixels of each class in the intersection, the union, the
    predictions and the labels, each of shape ``(C,)``.
    """

    areas: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def compute_metrics(self, results: list) -> dict[str, float]:
        """As ``IoUMetric``."""
        if not self.format_only:
            self.areas = tuple(sum(part) for part in zip(*results))
        return super().compute_metrics(results)

    def classes(self) -> list[dict]:
        """Name, IoU and Acc of each class, in percent; ``None`` where neither labels nor predictions have it."""
        intersect, union, _, label = (area.double() for area in self.areas)
        table = zip(self.dataset_meta['classes'], 100 * intersect / union, 100 * intersect / label)
        return [dict(name=name, IoU=_percent(iou), Acc=_percent(acc)) for name, iou, acc in table]


def _percent(value: Tensor) -> float | None:
    return None if value.isnan() else round(value.item(), 2)
