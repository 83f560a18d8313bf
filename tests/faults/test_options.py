"""Wrong values for every public option: each must fail at construction, with the name of the option."""

import inspect
import re
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import DEPTH, DIMS, segmentor_cfg
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from torch import nn

from mmseg_davpt import MetricGuidance
from mmseg_davpt.datasets import ReplayableSampler
from mmseg_davpt.engine import (
    AttentionMassHook,
    PictureGridHook,
    PromptAssignmentHook,
    TunedOptimWrapperConstructor,
)
from mmseg_davpt.guidance.losses import ProxyAnchorLoss
from mmseg_davpt.models import LinearBNHead, PromptedViT
from mmseg_davpt.tuning import TUNING_METHODS

NAN, INF = float('nan'), float('inf')
NO_NUMBER = ['1', 'auto', True, np.True_, [1], {}, 1j, NAN, INF, -INF]
BOOL = ['True', 'false', '', 0, 1, 1.0, None, [], [True], {}]
COUNT = [0, -1, 2.5, 3.0, np.float32(2), *NO_NUMBER]
INDEX = [-1, 0.0, 2.5, *NO_NUMBER]
POSITIVE = [0, 0.0, -1, -0.5, *NO_NUMBER]
WEIGHT = [-1, -1e-9, *NO_NUMBER]
SHARE = [-0.1, 1, 1.0, 1.5, *NO_NUMBER]
MARGIN = [-0.1, 1.5, 32, *NO_NUMBER]
CHOICE = ['', 'nope', 'None', None, 1, True, ['query'], {}]
SIZE = [(32,), (32, 32, 32), (32, 0), (-32, 32), (32, 32.0), ('32', '32'), '32', 0, -1, 2.5, True, NAN, {}, []]
BLOCKS = [
    'last',
    '',
    (),
    [],
    (DEPTH,),
    (-DEPTH - 1,),
    (0, 0),
    (0, -DEPTH),
    (1.0,),
    ('1',),
    (True,),
    (None,),
    1,
    {},
    2.5,
]
NAMES = ['', 'nope', (), [], ('nope',), (1,), (None,), 5, True, {}]
NONE = [None]

# Class -> option -> wrong values.
TUNING = {
    'adaptformer': dict(dim=COUNT + NONE, scale=POSITIVE + NONE, blocks=BLOCKS + NONE),
    'parallel_adapter': dict(dim=COUNT + NONE, scale=POSITIVE + NONE, blocks=BLOCKS + NONE),
    'convpass': dict(dim=COUNT + NONE, scale=POSITIVE + NONE, blocks=BLOCKS + NONE),
    'lora': dict(targets=[*NAMES, 'q', ('q', 'q')], rank=COUNT + NONE, alpha=POSITIVE, blocks=BLOCKS + NONE),
    'dora': dict(targets=[*NAMES, 'qv', ('v', 'v')], rank=COUNT + NONE, alpha=POSITIVE, blocks=BLOCKS + NONE),
    'bias': dict(layers=[*NAMES, 'k', ('v', 'v')]),
    'blocks': dict(indices=BLOCKS + NONE),
    'prompts': dict(
        num=[*COUNT, None, (3,), (3,) * 5 + (0,), (3,) * 5 + (2.5,), (3,) * 5 + (True,)],
        blocks=BLOCKS + NONE,
        init=CHOICE,
        dropout=SHARE + NONE,
        gate=BOOL,
    ),
    'residual_prompts': dict(num=[*COUNT, None, (3,)], blocks=BLOCKS + NONE, init=CHOICE, dropout=SHARE + NONE),
    'shallow_prompts': dict(num=[*COUNT, None, (3,)], dropout=SHARE + NONE),
    'norm': {},
    'ssf': {},
    'stem': {},
    'cls_token': {},
}
VIT = dict(
    arch=[None, 5, '', 'nope', 'resnet18', ['test_vit'], True],
    pretrained=[None, '', 0, 1, 2.5, ['x'], {}],
    img_size=[*SIZE, 8, (8, 32), (32, 15)],
    out_indices=[*BLOCKS, None, (3, 1), (-1, 0), 'all'],
    prompts=[5, 'x', True, ['num'], dict(nope=1), dict(num=0), dict(num='3'), dict(gate='True')],
    norm_outputs=BOOL,
    tuning=[None, {}, 5, True, '', 'nope', ['lora'], dict(nope=True), dict(lora='yes'), dict(lora=1), dict(lora=[1])],
    with_cp=BOOL,
    drop_path_rate=SHARE + NONE,
    allow_random=BOOL,
    trunk_dtype=[*CHOICE, 'int8', 'half', 'bf16', torch.bfloat16],
    init_cfg=[5, 'x', True, dict(type='Pretrained'), dict(type='Pretrained', checkpoint=5)],
)
GUIDANCE = dict(
    num_classes=[1, *COUNT],
    blocks=[*BLOCKS, None, 'all'],
    weight_patch=WEIGHT + NONE,
    weight_proto=WEIGHT + NONE,
    sample_space=CHOICE,
    prompt_space=[*CHOICE, 'attn_out'],
    proto_space=CHOICE,
    alpha=POSITIVE + NONE,
    margin=MARGIN + NONE,
    center_prototypes=BOOL,
)
HEAD = dict(
    in_channels=[64, '64', (), (0,), (-1,), (64.0,), (True,), None, {}],
    in_index=[0, '0', (), (0, 1), (0.0,), (True,), None, {}],
    norm_cfg=[None, 'BN', 5, ['BN'], True],
    num_classes=[1, *COUNT, None],
)
SAMPLER = dict(shuffle=BOOL, seed=INDEX, endless=BOOL)
HOOKS = {
    PromptAssignmentHook: dict(num_batches=COUNT + NONE, interval=INDEX),
    AttentionMassHook: dict(num_batches=COUNT + NONE),
    PictureGridHook: dict(num=COUNT + NONE, path=[5, True, ['x'], {}], draw_after_test=BOOL, loop=CHOICE),
}
SEGMENTOR = {
    'guidance': [5, True, False, 'MetricGuidance', ['x']],
    'decode_head.num_classes': [1, *COUNT],
    'decode_head.in_index': [3, -4, 99],
    'auxiliary_head.num_classes': [1, 0, -1, '5'],
    'auxiliary_head.in_index': [3, -4],
    'test_cfg.mode': [*CHOICE, 'slid', 'Slide'],
    'test_cfg.slide_batch': COUNT + NONE,
    'test_cfg.crop_size': [*SIZE, None, 32],
    'test_cfg.stride': [*SIZE, None, 16, (33, 16)],
}
OPTIMIZER = {
    'optimizer.lr': WEIGHT,
    'optimizer.weight_decay': WEIGHT,
    'accumulative_counts': COUNT + NONE,
    'clip_grad': [5, True, 'x', [1]],
    'clip_grad.max_norm': POSITIVE + NONE,
    'paramwise_cfg.custom_keys.lr_mult': WEIGHT + NONE,
    'paramwise_cfg.custom_keys.decay_mult': WEIGHT + NONE,
    'paramwise_cfg.custom_keys.lr_mul': [1.0],
    'paramwise_cfg.custom_keys.tund': [dict(lr_mult=1.0)],
    'paramwise_cfg.custom_keys.tuned': [5, 'x', None, [1]],
}


def vit(**options):
    options = dict(arch='test_vit', pretrained=False, allow_random=True, out_indices=(1, 3, 5)) | options
    return PromptedViT(**options)


def tuned(method, option, value):
    return vit(tuning={method: {option: value}})


def guidance(**options):
    counts = [2] * DEPTH
    return MetricGuidance(**dict(num_classes=5, prompt_counts=counts, embed_dims=DIMS) | options)


def loss(**options):
    return ProxyAnchorLoss(**options)


def head(**options):
    return LinearBNHead(**dict(in_channels=(DIMS,), in_index=(0,), num_classes=5) | options)


def sampler(**options):
    return ReplayableSampler(range(8), **dict(seed=0) | options)


def segmentor(key, value):
    cfg = segmentor_cfg(guidance=False)
    if key.startswith('auxiliary_head'):
        cfg.auxiliary_head = dict(cfg.decode_head)
    if key in ('test_cfg.crop_size', 'test_cfg.stride'):
        cfg.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    part, _, option = key.partition('.')
    if option:
        cfg[part][option] = value
    else:
        cfg[part] = value
    return MODELS.build(cfg)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)


def optimizer(key, value):
    cfg = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.0), clip_grad=dict(max_norm=1.0))
    paramwise = dict(custom_keys={'tuned': dict(lr_mult=1.0)})
    if key.endswith(('_mult', '_mul')):
        paramwise['custom_keys']['tuned'][key.split('.')[-1]] = value
    elif key.startswith('paramwise_cfg'):
        paramwise['custom_keys'][key.split('.')[-1]] = value
    else:
        *parents, option = key.split('.')
        node = cfg
        for parent in parents:
            node = node[parent]
        node[option] = value
    return TunedOptimWrapperConstructor(cfg, paramwise)(Net())


def rates(key):
    cfg, paramwise = dict(optimizer=dict(type='SGD', lr=0.1)), dict(custom_keys={key: dict(lr_mult=2.0)})
    return TunedOptimWrapperConstructor(cfg, paramwise)(Net())


def all_cases():
    """Name of the class, option, wrong value, and what builds the object."""
    for method, options in TUNING.items():
        for option, values in options.items():
            yield from ((method, option, value, lambda m=method, o=option, v=value: tuned(m, o, v)) for value in values)
    for name, build, table in (
        ('PromptedViT', vit, VIT),
        ('MetricGuidance', guidance, GUIDANCE),
        ('ProxyAnchorLoss', loss, {option: GUIDANCE[option] for option in ('alpha', 'margin')}),
        ('LinearBNHead', head, HEAD),
        ('ReplayableSampler', sampler, SAMPLER),
        *((hook.__name__, hook, table) for hook, table in HOOKS.items()),
    ):
        for option, values in table.items():
            yield from ((name, option, value, lambda b=build, o=option, v=value: b(**{o: v})) for value in values)
    for name, build, table in (
        ('PromptedEncoderDecoder', segmentor, SEGMENTOR),
        ('optim_wrapper', optimizer, OPTIMIZER),
    ):
        for option, values in table.items():
            yield from ((name, option, value, lambda b=build, o=option, v=value: b(o, v)) for value in values)


CASES = list(all_cases())


def outcome(option, build):
    """``named``, or what is wrong with the answer to a wrong value."""
    try:
        build()
    except (ValueError, TypeError) as error:
        last = option.split('.')[-1]
        return 'named' if re.search(rf'(?<![a-z_]){last}(?![a-z_])', str(error)) else f'unnamed: {error}'
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return 'accepted'


def check(cases):
    wrong = [
        (name, option, value, found)
        for name, option, value, build in cases
        if (found := outcome(option, build)) != 'named'
    ]
    assert not wrong, '\n'.join(map(str, wrong))


def test_one_value_of_every_kind_is_refused():
    """The first and last values of each option: the long test tries all."""
    ends = {}
    for case in CASES:
        ends.setdefault(case[:2], []).append(case)
    check([case for cases in ends.values() for case in {id(c): c for c in (cases[0], cases[-1])}.values()])


@pytest.mark.faults
def test_all_wrong_values_are_refused(record_property):
    check(CASES)
    options = {case[:2] for case in CASES}
    line = f'wrong options: {len(CASES)} values of {len(options)} options, all refused by name'
    record_property('faults', line)
    print(line, dict(Counter(name for name, *_ in CASES)))
    assert len(CASES) >= 300


def test_the_table_holds_every_option():
    def options(kind, *inner):
        return set(inspect.signature(kind).parameters) - {'self', 'kwargs', 'dataset', 'trunk', 'depth', *inner}

    assert {name: set(table) for name, table in TUNING.items()} == {
        name: options(method)
        for name, method in TUNING_METHODS.module_dict.items()
        if method.__module__.startswith('mmseg_davpt.')  # a suite that was read before registers its variants
    }
    assert set(VIT) == options(PromptedViT)
    assert set(GUIDANCE) == options(MetricGuidance, 'prompt_counts', 'embed_dims')
    assert set(SAMPLER) == options(ReplayableSampler)
    assert set(HEAD) - {'num_classes'} == options(LinearBNHead)
    for hook, table in HOOKS.items():
        assert set(table) == options(hook)


def test_right_values_of_other_types_are_accepted():
    """Numbers of NumPy, and lists and dicts of mmengine's configs."""
    cfg = ConfigDict(
        out_indices=[1, np.int64(-1)],
        img_size=np.int32(32),
        drop_path_rate=np.float32(0.5),
        norm_outputs=np.True_,
        tuning=dict(
            prompts=dict(num=[np.int64(2)] * 5 + [1], dropout=np.float64(0.1), gate=np.False_),
            lora=dict(targets=['q', 'proj'], rank=np.int16(2), alpha=np.float32(3)),
            bias=['v'],
        ),
    )
    model = vit(**cfg)
    assert model.out_indices == (1, 5)
    assert model.trunk.patch_embed.grid_size == (2, 2)
    assert model.prompt_counts == [2] * 5 + [1]
    assert type(model.prompts.dropout) is float
    assert guidance(blocks=[np.int64(-1)], weight_patch=np.float32(0.5), margin=0, alpha=np.int8(3)).blocks == (5,)
    assert sampler(seed=np.int64(3), shuffle=np.bool_(False)).seed == 3
    assert PromptAssignmentHook(np.int64(3), np.int64(0)).interval == 0
    assert head(in_channels=[DIMS, DIMS], in_index=[0, np.int64(-1)]).in_channels == 2 * DIMS


def test_one_output_of_the_last_block():
    """``out_indices=(-1,)`` counts from the end, with any head that reads one map."""
    cfg = segmentor_cfg(guidance=False, out_indices=(-1,))
    cfg.decode_head.in_index = -1
    model = MODELS.build(cfg)
    assert model.backbone.out_indices == (DEPTH - 1,)
    assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 1


def test_a_typo_in_a_key_of_rates_names_what_is_close():
    with pytest.raises(ValueError, match=r"custom_keys\['tuned\.promts'\] matches no parameter.*tuned\.prompts"):
        rates('tuned.promts')


@pytest.mark.parametrize('key', ['tuned.blocks', 'backbone.tuned', 'decode_head', 'neck', 'backbone', 'weight'])
def test_known_keys_of_absent_parts_are_no_typos(key):
    """A schedule file serves models with other methods and heads."""
    assert rates(key).param_groups
