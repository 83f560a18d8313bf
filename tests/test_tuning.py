"""What learns under each preset, and one battery that every preset must pass."""

import pytest
import torch
from conftest import DEPTH, DIMS, batch, segmentor_cfg
from mmseg.registry import MODELS

from mmseg_davpt.tuning import count_parameters, format_report

PRESETS = ['frozen', 'full', 'bias', 'norm', 'partial-2', 'vpt_shallow', 'vpt_deep', 'davpt', 'davpt_plus']
EXPLICIT = [
    dict(prompts=True, bias=('v',), norm=True, cls_token=True),
    dict(bias=('proj', 'fc1')),
    dict(blocks=(-1, 0)),
    dict(prompts='deep', bias='all'),
]


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trunk_names(model):
    return {f'trunk.{name}' for name, _ in model.trunk.named_parameters()}


def test_what_each_preset_tunes(vit):
    def of(tuning, **options):
        return learning(vit(tuning=tuning, prompts=dict(num=2), **options))

    model = vit(tuning='frozen')
    every = {name for name in trunk_names(model)}
    prompts = {f'prompts.tokens.{i}' for i in range(DEPTH)}
    assert of('frozen') == set()
    assert of('full') == every
    assert of('bias') == {name for name in every if name.endswith('.bias')}
    assert of('norm') == {name for name in every if '.norm' in name}
    last_two = {name for name in every if name.startswith(('trunk.blocks.4.', 'trunk.blocks.5.'))}
    assert of('partial-2') == last_two | {'trunk.norm.weight', 'trunk.norm.bias'}
    assert of('vpt_shallow') == {'prompts.tokens.0'}
    assert of('vpt_deep') == of('davpt') == prompts
    assert of('davpt_plus') == prompts | {f'biases.{i}.{part}' for i in range(DEPTH) for part in 'kv'}
    fc1 = {name for name in every if name.endswith(('fc1.bias', 'proj.bias')) and 'blocks' in name}
    assert of(dict(bias=('proj', 'fc1'))) == fc1 | {'trunk.patch_embed.proj.bias'}
    assert of(dict(cls_token=True)) == {'trunk.cls_token'}


def test_nothing_behind_the_last_tap_learns(vit):
    """A parameter that no output depends on breaks distributed training."""
    for tuning in PRESETS[1:]:
        tuning = 'partial-1' if tuning == 'partial-2' else tuning
        model = vit(tuning=tuning, out_indices=(0, 2), norm_taps=False, prompts=dict(num=2))
        names = learning(model)
        assert names
        assert not any(f'.{block}.' in f'.{name}.' for name in names for block in (3, 4, 5)), tuning
        assert 'trunk.norm.weight' not in names


@pytest.mark.parametrize('tuning', PRESETS + EXPLICIT, ids=str)
class TestEveryPreset:
    def build(self, tuning):
        model = MODELS.build(segmentor_cfg(tuning=tuning, prompts=dict(num=3), guidance=False))
        return model.train()

    def test_all_and_only_tuned_parameters_get_gradients(self, tuning):
        model = self.build(tuning)
        losses = model(*batch(), mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name

    def test_a_step_changes_only_what_is_tuned(self, tuning):
        model = self.build(tuning)
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        losses = model(*batch(), mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        tuned = learning(model.backbone)
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, before[name]) == (name not in tuned), name

    def test_train_returns_self_and_frozen_parts_evaluate(self, tuning):
        model = self.build(tuning)
        backbone = model.backbone
        assert backbone.train() is backbone
        for block in backbone.trunk.blocks:
            whole = all(parameter.requires_grad for parameter in block.parameters())
            assert block.training == whole
        assert backbone.training
        assert not backbone.eval().training
        assert not any(module.training for module in backbone.modules())

    def test_save_and_load_into_a_fresh_model(self, tuning, tmp_path):
        """BN statistics and guidance state included: predictions are equal."""
        model = self.build(tuning)
        model(*batch(), mode='loss')
        torch.save(model.state_dict(), tmp_path / 'm.pth')
        fresh = self.build(tuning)
        fresh.load_state_dict(torch.load(tmp_path / 'm.pth', weights_only=True))
        x, _ = batch()
        with torch.no_grad():
            a, b = model.eval()(x, mode='tensor'), fresh.eval()(x, mode='tensor')
        assert torch.equal(a, b)


def test_frozen_drop_path_is_dead_and_tuned_is_live(vit):
    x = torch.randn(4, 3, 32, 32)
    frozen = vit(tuning='davpt', prompts=dict(num=2), drop_path_rate=0.9).train()
    assert torch.equal(frozen(x)[-1], frozen(x)[-1])
    full = vit(tuning='full', drop_path_rate=0.9).train()
    assert not torch.equal(full(x)[-1], full(x)[-1])


@pytest.mark.parametrize(
    ('tuning', 'message'),
    [
        ('vpt', 'vpt_deep'),
        ('partial-9', '6 blocks'),
        (dict(promts=True), 'promts'),
        (dict(bias=('w',)), "bias='w'"),
        (dict(bias='k'), "bias='k'"),
        (dict(blocks=(6,)), 'tuning.blocks'),
        (dict(blocks='all', bias=('k',)), 'twice'),
    ],
)
def test_names_that_match_nothing_are_errors(vit, tuning, message):
    with pytest.raises(ValueError, match=message):
        vit(tuning=tuning)


def test_class_token_that_is_not_there(vit):
    with pytest.raises(ValueError, match='cls_token matches no parameter'):
        vit(arch='test_vit2', norm_taps=False, tuning=dict(cls_token=True))


def test_report_adds_up():
    model = MODELS.build(segmentor_cfg(tuning='davpt_plus', prompts=dict(num=3)))
    counts = count_parameters(model)
    assert counts['prompts'] == (DEPTH * 3 * DIMS, DEPTH * 3 * DIMS)
    assert counts['biases'][0] == DEPTH * 2 * DIMS
    assert counts['norms'][0] == 0
    assert sum(every for _, every in counts.values()) == sum(p.numel() for p in model.parameters())
    assert sum(tuned for tuned, _ in counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts['heads'][0] == sum(p.numel() for p in model.decode_head.parameters())
    report = format_report(model)
    trunk = sum(p.numel() for p in model.backbone.trunk.parameters())
    assert f'{100 * DEPTH * 3 * DIMS / trunk:.3f}' in report
