"""Learning rates and decay of the shipped schedules, by method."""

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from small_configs import shrink

SCHEDULES = {
    'adamw_160k': 'configs/davpt_upernet_ade20k.py',
    'adamw_80k': 'configs/paper/davpt_vit-l16_setr-pup_80k_pascal-context59-480x480.py',
    'adamw_cpu': 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py',
}
SEARCHED = 2e-3  # benchmarks/results/comparison.md: LoRA, AdaptFormer, biases, prompts on CamVid


def groups(schedule, tuning, **paramwise):
    """Name of a trainable parameter of the backbone -> its group, and the same for the heads."""
    cfg = Config.fromfile(ROOT / SCHEDULES[schedule])
    cfg.model.guidance = None
    cfg.model.backbone.update(tuning=tuning, prompts=None)
    model = MODELS.build(shrink(cfg.model))
    cfg.optim_wrapper.paramwise_cfg.update(paramwise)
    by_id = {
        id(parameter): group
        for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups
        for parameter in group['params']
    }
    return {name: by_id[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('tuning', ['lora', 'adaptformer', 'bias', dict(bias=('v',)), dict(norm=True)], ids=str)
def test_each_method_has_its_searched_rate_and_no_decay(schedule, tuning):
    found = {name: group for name, group in groups(schedule, tuning).items() if name.startswith('backbone.')}
    assert found
    for name, group in found.items():
        assert group['lr'] == pytest.approx(SEARCHED), name
        assert group['weight_decay'] == 0, name


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_full_tuning_decays_weights_but_no_pretrained_biases_and_norms(schedule):
    found = groups(schedule, 'full')
    rate = 2e-5 if schedule == 'adamw_cpu' else 6e-5
    for name, group in found.items():
        if name.startswith('backbone.'):
            assert group['lr'] == pytest.approx(rate), name
            decayed = name.endswith('.weight') and 'norm' not in name
            assert (group['weight_decay'] > 0) == decayed, name


def test_a_key_of_the_user_comes_first():
    found = groups('adamw_160k', 'lora', custom_keys={'backbone': dict(lr_mult=3.0, decay_mult=1.0)})
    group = found['backbone.tuned.lora.layers.0.q.lora_A.default.weight']
    assert (group['lr'], group['weight_decay']) == (pytest.approx(6e-4), pytest.approx(0.01))


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('full_*.py')), ids=lambda path: path.stem)
def test_shipped_full_tuning_has_the_rate_of_mmseg(path):
    cfg = Config.fromfile(path)
    model = MODELS.build(shrink(cfg.model))
    for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups:
        assert group['lr'] == pytest.approx(6e-5)
