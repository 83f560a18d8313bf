"""The wheel, in an empty folder: configs, command lines, console command."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution

import pytest
import yaml
from conftest import ROOT, run

from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.commands import describe_tools, find_tools, main
from mmseg_davpt.packaged import tool_command

pytestmark = pytest.mark.slow
NOT_INSTALLED = {'benchmark.py', 'compare.py'}  # they need benchmarks/


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Folder of packages with the built wheel. Built from a copy: setuptools takes over old files in build/."""
    source, site = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    for name in ('mmseg_davpt', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, source / name)
    options = ['-q', '--no-deps', '--no-build-isolation', '--disable-pip-version-check']
    build = [sys.executable, '-m', 'pip', 'wheel', *options, '-w', str(source / 'dist'), str(source)]
    done = subprocess.run(build, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next((source / 'dist').glob('*.whl'))) as wheel:
        wheel.extractall(site)
    return site


@pytest.fixture(scope='module')
def distribution(site):
    return PathDistribution(next(site.glob('*.dist-info')))


def test_the_wheel_holds_configs_and_tools(site):
    for folder in ('configs', 'tools'):
        expected = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob('*.*') if path.suffix != '.pyc'}
        expected -= {path for path in expected if path.name in NOT_INSTALLED}
        found = {path.relative_to(site / 'mmseg_davpt/.mim' / folder) for path in site.rglob(f'.mim/{folder}/**/*.*')}
        assert found == expected
    assert not list(site.rglob('.mim/**/*.pyc'))


def test_mim_finds_config_and_training(site, distribution):
    """As mim does: package folder from top_level.txt, one config of that name below it, .mim/tools/train.py."""
    (package,) = distribution.read_text('top_level.txt').split()
    assert len(list((site / package).rglob('davpt_upernet_ade20k.py'))) == 1
    assert (site / package / '.mim/tools/train.py').is_file()


def test_the_metafile_lists_the_configs(site):
    mim = site / 'mmseg_davpt/.mim'
    listed = []
    for name in yaml.safe_load((mim / 'model-index.yml').read_text())['Import']:
        listed += [model['Config'] for model in yaml.safe_load((mim / name).read_text())['Models']]
    configs = [path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in configs)


def test_train_and_infer_in_an_empty_folder(site, distribution, scenes, tmp_path):
    """By ``python -m``, then by the console command's function; the config is based on one of the wheel."""
    (script,) = distribution.entry_points.select(group='console_scripts')
    assert (script.name, script.value) == ('mmseg-davpt', 'mmseg_davpt.apis.commands:main')
    (tmp_path / 'my_config.py').write_text(f"""
_base_ = 'mmseg_davpt::davpt_upernet_miniscenes.py'
data_root = {str(scenes)!r}
files = dict(num_workers=0, persistent_workers=False, timeout=0, dataset=dict(data_root=data_root))
train_dataloader, val_dataloader, test_dataloader = dict(batch_size=2, **files), files, files
model = dict(
    backbone=dict(arch='test_vit', pretrained=False, allow_random=True, out_indices=(1, 2, 3, 5),
                  tuning=dict(lora=dict(rank=2)), prompts=None),
    guidance=None, neck=dict(embed_dim=64), decode_head=dict(in_channels=[64] * 4, channels=8))
param_scheduler = [dict(type='PolyLR', end=1, by_epoch=False)]
train_cfg = dict(max_iters=1, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=1))
""")
    image = next(scenes.rglob('images/validation/*.jpg'))
    code = f"""
import runpy, sys
import mmseg_davpt
from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.commands import main
print('package:', mmseg_davpt.__file__)
sys.argv = ['-m', 'train', 'my_config.py']
runpy.run_module('mmseg_davpt', run_name='__main__')
main(['infer', 'my_config.py', 'work_dirs/my_config/iter_1.pth', {str(image)!r}, '--out', 'masks of mine'])
"""
    printed = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(site))
    assert f'package: {site}' in printed
    assert re.search(r'Next: mmseg-davpt test \S*my_config.py \S+iter_1.pth', printed)
    assert '1 of 1 images segmented' in printed
    assert (tmp_path / 'masks of mine/masks' / f'{image.stem}.png').is_file()


def test_an_own_config_by_its_name():
    cfg = load_config('mmseg_davpt::paper/vpt_vit-l16_setr-pup_160k_ade20k-512x512.py')
    assert cfg.model.backbone.tuning == 'vpt_deep'
    assert cfg.work_dir == 'work_dirs/vpt_vit-l16_setr-pup_160k_ade20k-512x512'


@pytest.mark.parametrize(
    ('started', 'command'),
    [
        ('tools/train.py', "python tools/get_weights.py 'a b.pth'"),
        ('site/mmseg_davpt/.mim/tools/train.py', "mmseg-davpt get-weights 'a b.pth'"),
    ],
)
def test_a_command_to_type_is_of_the_kind_that_was_typed(started, command, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [started])
    assert tool_command('get_weights', 'a b.pth') == command
    assert command.split()[1] in [*find_tools(), 'tools/get_weights.py']


def test_commands_are_those_of_the_files(tmp_path):
    """Also of files that are added later."""
    for name in ('train', 'check_dataset', 'export', 'report', 'report_speed', 'get_weights', 'get_data'):
        (tmp_path / f'{name}.py').write_text(f'"""Do {name}: python tools/{name}.py"""')
    tools = find_tools(tmp_path)
    assert {command: path.stem for command, path in tools.items()} == {
        'train': 'train', 'check': 'check_dataset', 'check-dataset': 'check_dataset', 'export': 'export',
        'report': 'report', 'report-speed': 'report_speed', 'get-weights': 'get_weights', 'get-data': 'get_data',
    }  # fmt: skip
    text = describe_tools(tools)
    assert re.search(r'^  check +Do check_dataset$', text, re.M) and text.count('Do check_dataset') == 1


def test_an_unknown_command_lists_the_known(capsys):
    with pytest.raises(SystemExit, match=r"unknown command 'trian'\n(.|\n)*train +Train a model"):
        main(['trian'])
    main([])
    assert 'usage: mmseg-davpt COMMAND' in capsys.readouterr().out
