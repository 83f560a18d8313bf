"""Images and index masks, written in the ways in which people keep them."""

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

IGNORED = 255


@dataclass
class Layout:
    """What was written, and what is expected.

    Attributes:
        images, masks: Folders.
        expected: Name of an image below its folder -> ids, (H, W).
        classes: Lines of the file of classes; none if empty.
        ignored: For --ignore.
        val: Names of validation images if the layout names them.
        in_place: Whether the masks need no conversion.
    """

    images: Path
    masks: Path
    expected: dict = field(default_factory=dict)
    classes: list = field(default_factory=list)
    ignored: tuple = ()
    val: set = field(default_factory=set)
    in_place: bool = False


def synthetic_pairs(number=12, classes=4, size=(48, 40)):
    """Images and ids 0 to classes - 1, with some 255; every class is in every image."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(number):
        ids = np.sort(rng.integers(0, classes, size[0]))[None].repeat(size[1], 0).astype(np.uint8)
        ids[:, :classes] = np.arange(classes)
        ids[:3, -5:] = IGNORED
        colors = np.stack([ids % 8 * 30, ids % 5 * 50, ids // 2 * 20], -1)
        pairs.append((Image.fromarray(colors.astype(np.uint8)), ids))
    return pairs


def real_pairs(root, number=24):
    """Every n-th training pair of a dataset in the layout of CamVid."""
    paths = sorted(root.glob('images/train/*.jpg'))
    paths = paths[:: max(len(paths) // number, 1)][:number]
    return [(Image.open(path), np.array(Image.open(root / f'annotations/train/{path.stem}.png'))) for path in paths]


def compact(pairs):
    """The same pairs with the ids that occur numbered from 0."""
    used = sorted(set(np.concatenate([np.unique(ids) for _, ids in pairs])) - {IGNORED})
    table = np.full(256, IGNORED, np.uint8)
    table[used] = np.arange(len(used))
    return [(image, table[ids]) for image, ids in pairs], len(used)


def color_table(number):
    """A color per class; the last row is that of 255."""
    table = np.zeros((256, 3), np.uint8)
    index = np.arange(number)
    table[:number] = np.stack([index * 7 % 256, 255 - index * 5 % 200, 40 + index], -1)
    return table


def write(root, pairs, image_names, mask_names, values, suffix='.jpg'):
    """Write images and masks; values turns ids into a PIL image."""
    for (image, ids), image_name, mask_name in zip(pairs, image_names, mask_names):
        for path, picture in ((root / image_name, image), (root / mask_name, values(ids))):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


def gray(ids):
    return Image.fromarray(ids)


def names_of(pairs, pattern):
    return [pattern.format(index) for index in range(1, len(pairs) + 1)]


def same_names(root, pairs, number):
    images, masks = names_of(pairs, 'photos/{:03d}.jpg'), names_of(pairs, 'masks/{:03d}.png')
    write(root, pairs, images, masks, gray)
    return Layout(root / 'photos', root / 'masks', in_place=True), images, pairs


def suffixes(root, pairs, number):
    """Names without leading zeros: 1 is the start of 10."""
    images, masks = names_of(pairs, 'photos/shot_{}.png'), names_of(pairs, 'masks/shot_{}_seg.png')
    write(root, pairs, images, masks, gray)
    return Layout(root / 'photos', root / 'masks', in_place=True), images, pairs


def nested(root, pairs, number):
    """As Cityscapes: folders of cities, which share file names, and suffixes on both sides."""
    towns = [('aachen', 'ulm')[index % 2] for index in range(len(pairs))]
    images = [f'leftImg8bit/{town}/{index // 2:02d}_leftImg8bit.jpg' for index, town in enumerate(towns)]
    masks = [f'gtFine/{town}/{index // 2:02d}_gtFine_labelIds.png' for index, town in enumerate(towns)]
    write(root, pairs, images, masks, gray)
    return Layout(root / 'leftImg8bit', root / 'gtFine', in_place=True), images, pairs


def splits_and_prefixes(root, pairs, number):
    """Folders train and val on one side, training and validation on the other; prefixes that differ."""
    parts = [('train', 'training') if index % 3 else ('val', 'validation') for index in range(len(pairs))]
    images = [f'in/{short}/images/img_{index}.jpg' for index, (short, _) in enumerate(parts)]
    masks = [f'in2/labels/{long}/mask_{index}.png' for index, (_, long) in enumerate(parts)]
    write(root, pairs, images, masks, gray)
    layout = Layout(root / 'in', root / 'in2', val={name for name in images if '/val/' in name})
    return layout, images, pairs


def colors(root, pairs, number):
    """Colors without a list of classes: ordered as numbers, 255 is a color like others."""
    table = color_table(number)
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')
    write(root, pairs, images, masks, lambda ids: Image.fromarray(table[ids]))
    order = sorted({tuple(color) for _, ids in pairs for color in table[np.unique(ids)].tolist()})
    ranks = np.array([order.index(c) if (c := tuple(color)) in order else 255 for color in table.tolist()], np.uint8)
    return Layout(root / 'a', root / 'b'), images, [(image, ranks[ids]) for image, ids in pairs]


def colors_with_classes(root, pairs, number):
    """The list orders the classes; a color that it lacks is ignored. RGBA files."""
    table = color_table(number)
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')
    write(root, pairs, images, masks, lambda ids: Image.fromarray(table[ids]).convert('RGBA'))
    lines = ['{}, {}, {}, {}'.format(f'thing {index}', *table[index]) for index in range(number)]
    return Layout(root / 'a', root / 'b', classes=lines), images, pairs


def zero_and_255(root, pairs, number):
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')
    write(root, pairs, images, masks, lambda ids: Image.fromarray((ids == 1).astype(np.uint8) * 255))
    return Layout(root / 'a', root / 'b'), images, [(image, (ids == 1).astype(np.uint8)) for image, ids in pairs]


def one_based(root, pairs, number):
    """0 is unlabeled, as the number of names says; mmseg subtracts 1."""
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')
    write(root, pairs, images, masks, lambda ids: Image.fromarray((ids + 1).astype(np.uint8)))
    lines = [f'thing {index}' for index in range(number)]
    return Layout(root / 'a', root / 'b', classes=lines, in_place=True), images, pairs


def spaces_and_unicode(root, pairs, number):
    """Masks from a Mac, whose names are decomposed; suffixes in capitals."""
    images = names_of(pairs, 'meine Fotos/Straße {} (Größe é).JPG')
    masks = [unicodedata.normalize('NFD', name) for name in names_of(pairs, 'meine Masken/Straße {} (Größe é).PNG')]
    write(root, pairs, images, masks, gray)
    return Layout(root / 'meine Fotos', root / 'meine Masken', in_place=True), images, pairs


def palette_with_gaps(root, pairs, number):
    """Ids that are not numbered through, in PNGs with a palette; 254 is no class."""
    table = np.full(256, 254, np.uint8)
    table[:number] = np.arange(number) * 2 + 3
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')

    def values(ids):
        picture = Image.fromarray(table[ids])
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
        return picture

    write(root, pairs, images, masks, values)
    return Layout(root / 'a', root / 'b', ignored=(254,)), images, pairs


def one_folder(root, pairs, number):
    images, masks = names_of(pairs, 'all/{}.jpg'), names_of(pairs, 'all/{}_L.png')
    write(root, pairs, images, masks, gray)
    return Layout(root / 'all', root / 'all', in_place=True), images, pairs


def gray_in_color_files(root, pairs, number):
    """Ids in three equal channels."""
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')
    write(root, pairs, images, masks, lambda ids: Image.fromarray(ids).convert('RGB'))
    return Layout(root / 'a', root / 'b'), images, pairs


def sixteen_bits(root, pairs, number):
    """Ids above 255, as labeling programs write them."""
    images, masks = names_of(pairs, 'a/{}.jpg'), names_of(pairs, 'b/{}.png')
    write(
        root, pairs, images, masks, lambda ids: Image.fromarray(np.where(ids == IGNORED, 255, ids.astype('u2') + 1000))
    )
    return Layout(root / 'a', root / 'b'), images, pairs


LAYOUTS = [
    same_names, suffixes, nested, splits_and_prefixes, colors, colors_with_classes, zero_and_255, one_based,
    spaces_and_unicode, palette_with_gaps, one_folder, gray_in_color_files, sixteen_bits,
]  # fmt: skip


def make_layout(function, root, pairs):
    """Write pairs in a layout; the Layout with what is expected of each image."""
    pairs, number = compact(pairs)
    layout, images, expected = function(root, pairs, number)
    layout.expected = {str(root / name): ids for name, (_, ids) in zip(images, expected)}
    layout.val = {str(root / name) for name in layout.val}
    return layout
