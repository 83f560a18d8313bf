"""Clothing Co-Parsing with 33 classes (Yang, Luo, Lin, CVPR 2014)."""

from __future__ import annotations

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class CCPDataset(BaseSegDataset):
    """Street fashion photos: ``images/{train,val}/*.jpg``, ``annotations/{train,val}/*.png``, ids 0 to 32, 255 = other.

    The classes are those of the collection's 59 that occur in at least 40 photos.
    """

    METAINFO = dict(
        classes=(
            'background', 'accessories', 'bag', 'belt', 'blazer', 'blouse', 'boots', 'bracelet', 'coat', 'dress',
            'hair', 'hat', 'jacket', 'jeans', 'leggings', 'pants', 'purse', 'sandals', 'scarf', 'shirt', 'shoes',
            'shorts', 'skin', 'skirt', 'socks', 'stockings', 'suit', 'sunglasses', 'sweater', 'sweatshirt', 't-shirt',
            'top', 'vest',
        ),
        palette=[
            [0, 0, 0], [61, 114, 242], [146, 242, 12], [191, 86, 178], [48, 191, 167], [191, 108, 10], [90, 69, 153],
            [43, 153, 38], [153, 8, 56], [109, 192, 242], [227, 242, 61], [194, 12, 242], [86, 191, 138],
            [191, 77, 48], [10, 25, 191], [101, 153, 69], [153, 38, 115], [8, 147, 153], [242, 209, 109],
            [143, 61, 242], [12, 242, 50], [191, 86, 99], [48, 108, 191], [139, 191, 10], [153, 69, 153],
            [38, 153, 119], [153, 68, 8], [125, 109, 242], [92, 242, 61], [242, 12, 118], [86, 165, 191],
            [191, 185, 48], [130, 10, 191],
        ],
    )  # fmt: skip

    def __init__(self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs: object) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
