"""Overlays and their legends."""

import numpy as np
import pytest

from mmseg_davpt.reports.overlay import draw_comparison, draw_legend, draw_overlay

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
NAMES = ['road', 'sky', 'a class with a very long name']


def test_colors_are_mixed_and_other_ids_left_out():
    image = np.full((300, 40, 3), 100, np.uint8)
    mask = np.zeros((300, 40), np.int64)
    mask[:, 20:], mask[299] = 2, 255
    overlay = draw_overlay(image, mask, NAMES, PALETTE, opacity=0.25, legend=False)
    assert overlay[0, 0].tolist() == [139, 75, 75]
    assert overlay[298, 39].tolist() == [75, 75, 139]
    assert (overlay[299] == 100).all()


def test_the_legend_names_the_classes_that_occur():
    mask = np.zeros((60, 600), np.uint8)
    mask[:, 200:] = 1
    overlay = draw_overlay(np.zeros((60, 600, 3), np.uint8), mask, NAMES, PALETTE)
    assert overlay.shape[1] == 600
    legend = overlay[60:]
    fields = [np.flatnonzero((legend == color).all(-1).any(0)) for color in PALETTE]
    assert fields[1].max() < fields[0].min()  # the larger class first
    assert not fields[2].size
    assert (legend < 128).all(-1).any()  # letters


@pytest.mark.parametrize('width', [1, 50, 320, 4000])
def test_every_name_has_its_place(width):
    names = [f'class number {index}' for index in range(40)]
    colors = np.array([[index * 6, 255 - index * 6, 77] for index in range(40)], np.uint8)
    legend = draw_legend(names, colors, width)
    assert legend.shape[1] == max(width, legend.shape[1])
    for color in colors:
        assert (legend == color).all(-1).sum() > 60  # the whole field
    assert (legend[:, 0] == 255).all()
    assert (legend[-1] == 255).all()


def test_no_class_needs_no_legend():
    image = np.zeros((4, 5, 3), np.uint8)
    assert draw_overlay(image, np.full((4, 5), 255), NAMES, PALETTE).shape == (4, 5, 3)


def test_a_comparison_shows_image_truth_and_prediction():
    image = np.full((40, 300, 3), 100, np.uint8)
    truth, prediction = np.full((40, 300), 255), np.ones((40, 300), np.int64)
    truth[:, :100] = 0
    picture = draw_comparison(image, truth, prediction, NAMES, PALETTE, opacity=1.0)
    assert picture.shape[1] == 900
    assert (picture[:40, :300] == image).all()
    assert (picture[:40, 300:400] == PALETTE[0]).all()
    assert (picture[:40, 400:600] == 100).all()  # ignored pixels of the truth
    assert (picture[:40, 600:] == PALETTE[1]).all()
    legend = picture[40:]
    assert all((legend == color).all(-1).any() for color in PALETTE[:2])  # classes of both
    assert draw_comparison(image, None, prediction, NAMES, PALETTE).shape[1] == 600
