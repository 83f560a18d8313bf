"""What is counted at the collectives is what the arithmetic says; shapes without values keep what real tensors keep."""

import torch

from benchmarks.speed import counted_exchange, exchanged_bytes, large_trunk, scale
from mmseg_davpt.models import PromptedViT


def test_the_collectives_carry_the_trainable_gradients_and_the_class_statistics(tiny_config):
    counted = counted_exchange(tiny_config, 2)
    expected = exchanged_bytes(tiny_config)
    assert counted['gradients'] == expected['trunk'] + expected['heads']
    assert counted['others'] == expected['statistics'] > 0
    assert counted['expected'] == sum(expected.values())


def test_a_large_trunk_by_its_shapes():
    result = large_trunk('test_vit', 64, (1, 2))
    rows = {(row['kind'], row['batch']): row for row in result['rows']}
    assert len(rows) == 2 * len(scale.LARGE)
    for kind, options in scale.LARGE.items():
        model = PromptedViT('test_vit', pretrained=False, allow_random=True, img_size=64, **options).train()
        first, second = (rows[kind, batch] for batch in (1, 2))
        for key, trained in (('trainable', True), ('frozen', False)):
            assert first[key] == sum(p.nbytes for p in model.parameters() if p.requires_grad == trained)
        assert first['moments'] == 2 * first['gradients'] == 2 * first['trainable']
        assert first['activations'] == scale._kept_for_backward(model, torch.zeros(1, 3, 64, 64))
        assert 1.8 * first['activations'] < second['activations'] <= 2 * first['activations']
    half, exact = (rows[f'residual prompts, {dtype} trunk', 1] for dtype in ('bfloat16', 'float32'))
    assert half['activations'] < exact['activations']
    tokens, width, depth = 4 * 4 + 1, 64, 6
    assert rows['the same, with_cp', 1]['activations'] >= 4 * depth * tokens * width  # the input of each block
    assert result['parameters'] == sum(p.numel() for p in model.trunk.parameters())


def test_a_measured_step_is_above_the_arithmetic():
    step = scale.measured_step('vit_tiny_patch16_224', 224)
    assert 0.8 * step['expected'] < step['measured'] < 3 * step['expected']  # operators need memory for a moment
    assert '0.02' in scale._measured(dict(step, expected=2e7))
