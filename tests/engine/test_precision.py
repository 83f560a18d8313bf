"""``dtype='auto'``: bfloat16 where the CPU has instructions for it, float32 elsewhere."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from torch.utils.data import DataLoader

from mmseg_davpt.apis import enable_amp
from mmseg_davpt.engine import CpuAmpTestLoop, CpuAmpValLoop, cpu_has_bfloat16

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='autocast of a CPU')


@pytest.fixture(params=[True, False], ids=['with bfloat16', 'without'])
def native(request, monkeypatch):
    """Whether the CPU seems to have instructions for bfloat16."""
    monkeypatch.setattr('mmseg_davpt.engine.precision.cpu_has_bfloat16', lambda: request.param)
    return request.param


def build(**options):
    model = torch.nn.Linear(2, 2)
    wrapper = dict(type='CpuAmpOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)
    return OPTIM_WRAPPERS.build(wrapper), model


def output_type(wrapper, model):
    with wrapper.optim_context(model):
        return model(torch.zeros(1, 2)).dtype


def test_flags_of_linux():
    """torch and the kernel read the same flags."""
    path = Path('/proc/cpuinfo')
    if not path.is_file() or 'flags' not in path.read_text():
        pytest.skip('no flags of an x86 CPU')
    flags = path.read_text().split()
    assert cpu_has_bfloat16() == ('avx512_bf16' in flags or 'amx_tile' in flags)


def test_auto(native, monkeypatch):
    lines = []
    monkeypatch.setattr('mmseg_davpt.engine.optim.print_log', lambda line, **_: lines.append(line))
    wrapper, model = build(dtype='auto')
    expected = torch.bfloat16 if native else torch.float32
    assert output_type(wrapper, model) == wrapper.cpu_dtype == expected
    count = 'instructions' if native else 'no instructions'
    assert lines == [f'Precision on a CPU: {str(expected).removeprefix("torch.")}; this one has {count} for bfloat16.']


@pytest.mark.parametrize(('options', 'expected'), [({}, torch.bfloat16), ({'dtype': 'float32'}, torch.float32)])
def test_a_named_type_is_used_on_any_cpu(native, options, expected):
    assert output_type(*build(**options)) == expected


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"optim_wrapper.dtype='float16': expected one of 'bfloat16', "):
        build(dtype='float16')


@on_cpu
@pytest.mark.parametrize('loop', [CpuAmpValLoop, CpuAmpTestLoop])
def test_loops(native, loop):
    loader = DataLoader([torch.zeros(1)])
    parts = dict(runner=SimpleNamespace(), dataloader=loader, evaluator=Evaluator([]))
    assert LOOPS.build(dict(type=loop.__name__), default_args=parts).fp16 is native


@on_cpu
@pytest.mark.parametrize('dtype', ['auto', 'float32'])
def test_the_option_amp_asks_for_bfloat16(dtype):
    cfg = Config(dict(optim_wrapper=dict(type='CpuAmpOptimWrapper', dtype=dtype)))
    enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type='CpuAmpOptimWrapper')


def test_comparisons_keep_bfloat16():
    """Their rows were measured with it, on any CPU."""
    cfg = Config.fromfile(ROOT / 'configs/davpt-residual_vit-s14_upernet_400it_camvid-168x224.py')
    assert cfg.optim_wrapper.type == 'CpuAmpOptimWrapper' and 'dtype' not in cfg.optim_wrapper
    assert cfg.test_cfg == dict(type='TestLoop', fp16=True)
