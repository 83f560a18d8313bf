"""Figures of prompt attention, and the numbers that they draw."""

import numpy as np
import pytest
import torch
from conftest import batch, segmentor_cfg
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from PIL import Image

from mmseg_davpt import reports
from mmseg_davpt.reports import PromptAttention

CLASSES = ('sky', 'road', 'car', 'tree', 'pole')


@pytest.fixture(params=['davpt', 'davpt_residual'])
def model(request):
    torch.manual_seed(0)
    model = MODELS.build(segmentor_cfg(tuning=request.param, prompts=dict(num=7, init='xavier')))
    model.guidance.assignments[0].assignment.copy_(torch.tensor([0, 2, 2, -1, 6]))
    return model.train()


def batches(number=2):
    """Batches as a data loader gives them: images as bytes, and labeled samples."""
    torch.manual_seed(1)
    images = [torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8) for _ in range(number)]
    return [dict(inputs=list(pixels), data_samples=batch()[1]) for pixels in images]


def test_description_of_a_table():
    """Two classes on three prompts, by hand: class 0 attends to its prompt with 3/4 of its weight, class 1 with 1/2."""
    table = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]], dtype=torch.float64)
    described = PromptAttention(table, torch.tensor([10.0, 6.0]), torch.tensor([0, 2])).describe()
    assert described['to_prompts'] == pytest.approx(100 * 8 / 16)
    assert described['to_own'] == pytest.approx(100 * 5 / 8)
    assert described['own_by_chance'] == pytest.approx(100 * (0.5 * 3 / 8 + 0.5 * 2 / 8))
    joint = [(3 / 8, 3 / 8), (1 / 8, 3 / 8), (2 / 8, 3 / 8), (2 / 8, 2 / 8)]  # with the mass of its prompt
    assert described['bits'] == pytest.approx(sum(p * np.log2(p / (0.5 * q)) for p, q in joint))
    assert 'to_own' not in PromptAttention(table, torch.tensor([10.0, 6.0]), None).describe()


def test_blocks_are_measured_together_as_alone(model):
    together = reports.measure_attention(model, batches(), [0, -1])
    assert list(together) == [0, 5]
    for position, index in ((0, 0), (-1, 5)):
        (alone,) = reports.measure_attention(model, batches(), [position]).values()
        torch.testing.assert_close(together[index].table, alone.table)
    assert together[0].assignment is None
    assert together[5].assignment.tolist() == [0, 2, 2, -1, 6]
    assert model.training
    with pytest.raises(ValueError, match='6 prompted blocks'):
        reports.measure_attention(model, batches(), [6])


def test_labels_of_another_size_than_the_images(model):
    """Test pipelines resize images before they load the labels."""
    expected = reports.measure_attention(model, batches())
    data = batches()
    for one in data:
        for sample in one['data_samples']:
            labels = sample.gt_sem_seg.data
            sample.gt_sem_seg = PixelData(data=labels.repeat_interleave(2, 1).repeat_interleave(3, 2))
    torch.testing.assert_close(reports.measure_attention(model, data)[5].table, expected[5].table)
    assert torch.isfinite(reports.prompt_space(model, data).prototypes).all()


def test_maps_are_the_weights_of_the_patches(model):
    data = model.data_preprocessor(batches(1)[0], training=True)
    (maps,) = reports.attention_maps(model, data['inputs'], [-1]).values()
    assert maps.shape == (2, 7, 4, 4)
    (measured,) = reports.measure_attention(model, batches(1), [-1]).values()
    residual = 'residual_prompts' in model.backbone.tuned
    assert torch.allclose(maps.sum(dim=1), torch.ones(2, 4, 4)) == residual
    fractions = model.class_fractions(data['data_samples']).unflatten(1, (4, 4))
    torch.testing.assert_close(torch.einsum('bhwc,bmhw->cm', fractions, maps).double(), measured.table)


def test_prototypes_are_means_of_the_samples(model):
    model.guidance.center_prototypes = True
    data = batches(1)
    space = reports.prompt_space(model, data, -1, per_batch=1000)
    inputs = model.data_preprocessor(data[0], training=True)
    fractions = model.class_fractions(inputs['data_samples']).flatten(0, 1)
    with model.eval().backbone.record([5]) as activations, torch.no_grad():
        model.backbone(inputs['inputs'])
    samples = activations[5].attn_out.flatten(0, 1)
    means = torch.stack([(fractions[:, c, None] * samples).sum(0) / fractions[:, c].sum() for c in range(5)])
    torch.testing.assert_close(space.prototypes, means - means.mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(space.counts, fractions.sum(dim=0))
    labeled = fractions.sum(dim=1) > 0.5
    torch.testing.assert_close(space.patches, samples[labeled] - means.mean(dim=0), atol=1e-5, rtol=1e-4)
    assert torch.equal(space.classes, fractions[labeled].argmax(dim=1))
    assert space.prompts.shape == (7, 64)


def test_figures_are_1200_pixels_wide(model, tmp_path):
    (measured,) = reports.measure_attention(model, batches(), [-1]).values()
    space = reports.prompt_space(model, batches())
    data = model.data_preprocessor(batches(1)[0], training=True)
    (maps,) = reports.attention_maps(model, data['inputs']).values()
    titles = reports.prompt_titles(7, measured.assignment, CLASSES)
    assert titles == ['0: sky', '1', '2: road, car', '3', '4', '5', '6: pole']
    image = np.full((64, 64, 3), 120, np.uint8)
    for number in (1, 2):
        names = ['first', 'second'][:number]
        reports.draw_class_table(dict.fromkeys(names, measured), CLASSES, tmp_path / f'{number}/classes.png')
        reports.draw_prompt_space(dict.fromkeys(names, space), CLASSES, tmp_path / f'{number}/space.png')
        reports.draw_prompt_maps(image, dict.fromkeys(names, (maps[0], titles)), tmp_path / f'{number}/maps.png')
    sizes = {path.relative_to(tmp_path).as_posix(): Image.open(path).size for path in tmp_path.glob('*/*.png')}
    assert len(sizes) == 6
    assert {width for width, _ in sizes.values()} == {1200}
    assert sizes['2/maps.png'][1] > 1.8 * sizes['1/maps.png'][1]
    with pytest.raises(ValueError, match='pca or umap'):
        reports.draw_prompt_space(dict(first=space), CLASSES, tmp_path / 'space.png', 'tsne')


def test_a_table_without_assigned_prompts_is_drawn(tmp_path):
    """All classes that occur were in no training image."""
    table = PromptAttention(torch.ones(3, 4), torch.tensor([5.0, 0.0, 1.0]), torch.tensor([-1, 2, -1]))
    reports.draw_class_table({'model': table}, CLASSES, tmp_path / 'table.png')
    assert Image.open(tmp_path / 'table.png').width == 1200
