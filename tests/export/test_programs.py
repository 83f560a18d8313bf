"""ONNX files and programs of torch.export: each is run again and compared."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from export_cases import CLASSES, make_segmentor
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_davpt.export import ExportError, export_onnx, export_torch, programs

# The exporters alone: test_graph.py compares all methods and heads, and export_cases.py prints the table of all.
ONNX = {
    'open size': ('residual prompts', 'linear', None, True),
    'fixed size': ('gated prompts', 'light UPerNet', (64, 80), False),
}


@pytest.fixture(scope='module', params=ONNX)
def exported(request, tmp_path_factory):
    """Segmentor, size, whether the program normalizes, errors and file."""
    for name in programs.PACKAGES:
        pytest.importorskip(name)
    init_default_scope('mmseg')
    method, head, size, normalize = ONNX[request.param]
    model, file = make_segmentor(method, head), tmp_path_factory.mktemp('onnx') / 'model.onnx'
    return model, size, normalize, export_onnx(model, file, size, normalize), file


def test_onnx(exported):
    import onnxruntime

    _, size, normalize, errors, file = exported
    assert len(errors) == (2 if size else 4)  # batches of 1 and 3; two sizes
    assert max(errors.values()) < 2e-5  # tiny models; the limit is 1e-4
    assert [path.name for path in file.parent.iterdir()] == ['model.onnx']
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    height, width = size or (80, 64)
    (logits,) = session.run(None, {'images': np.zeros((2, 3, height, width), np.float32)})
    assert logits.shape == (2, CLASSES, height, width)
    about = json.loads(session.get_modelmeta().custom_metadata_map['mmseg_davpt'])
    assert about['classes'] == list('abcdefg')
    assert about['mask_ids'] == [1, 2, 3, 4, 5, 6, 7]
    assert about['size'] == (None if size is None else list(size))
    assert about['mean'] == (None if normalize else pytest.approx([123.675, 116.28, 103.53]))


def test_the_example_of_the_page(exported, tmp_path, monkeypatch):
    """docs/export.md runs as it stands, and gives the segmentor's mask."""
    model, size, _, _, file = exported
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    Image.fromarray(pixels).save(tmp_path / 'photo.jpg')
    (tmp_path / 'model.onnx').write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r'```python\n(import json.*?)```', (ROOT / 'docs/export.md').read_text(), re.S)
    assert not re.search(r'import (torch|mmseg|cv2)', example)
    exec(compile(example, 'docs/export.md', 'exec'), {})
    mask = np.asarray(Image.open('mask.png'))
    assert mask.shape == (100, 140)
    height, width = size or (96, 144)  # the nearest multiples of 16
    resized = Image.open('photo.jpg').resize((width, height), Image.Resampling.BILINEAR)
    images = torch.as_tensor(np.asarray(resized)).permute(2, 0, 1)[None].float()
    inputs = model.data_preprocessor(dict(inputs=list(images.flip(1))))['inputs']
    logits = model.encode_decode(inputs, [dict(img_shape=(height, width))])
    expected = torch.nn.functional.interpolate(logits, (100, 140), mode='bilinear').argmax(1)[0].numpy() + 1
    assert len(np.unique(expected)) > 1
    assert (mask == expected).mean() > 0.98  # Pillow's bilinear resize is not torch's


def test_torch(tmp_path):
    model = make_segmentor('AdaptFormer', 'full UPerNet')
    errors = export_torch(model, tmp_path / 'a.pt2', normalize=False)
    assert len(errors) == 4
    assert max(errors.values()) < 2e-5
    extra = {'mmseg_davpt': ''}
    program = torch.export.load(tmp_path / 'a.pt2', extra_files=extra).module()
    images = torch.randn(1, 3, 80, 64)
    expected = model.encode_decode(images, [dict(img_shape=(80, 64))])
    torch.testing.assert_close(program(images), expected, rtol=0, atol=2e-5)
    about = json.loads(extra['mmseg_davpt'])
    assert (about['channels'], about['mean'][0]) == ('RGB', pytest.approx(123.675))


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    model = make_segmentor('bias', 'linear')
    with pytest.raises(ValueError, match=r'--size 60 100: .* of the patch size \(16, 16\), for instance 64 96'):
        export_torch(model, tmp_path / 'a.pt2', (60, 100))
    assert not list(tmp_path.iterdir())


def test_a_wrong_program_is_kept_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, 'MAX_ERROR', 1e-9)
    with pytest.raises(ExportError, match=r'differ by .*\(the largest is \d+\.\d\).* kept as .*a\.unchecked\.pt2'):
        export_torch(make_segmentor('bias', 'linear'), tmp_path / 'a.pt2', (64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ['a.unchecked.pt2']


def test_a_program_that_does_not_run_is_kept_and_named(tmp_path, monkeypatch):
    def fails(images):
        raise RuntimeError('no kernel')

    program = SimpleNamespace(module=lambda: fails)
    monkeypatch.setattr(programs.torch.export, 'load', lambda path: program)
    with pytest.raises(ExportError, match=r'does not run for images of shape .*no kernel.*a\.unchecked\.pt2'):
        export_torch(make_segmentor('bias', 'linear'), tmp_path / 'a.pt2', (64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ['a.unchecked.pt2']


def test_open_sizes_of_rotary_codes_are_refused(tmp_path):
    model = make_segmentor('LoRA', 'linear', arch='eva02_tiny_patch14_336', img_size=56)
    with pytest.raises(ValueError, match=r'rotary position codes .* use --size H W in place of --dynamic'):
        export_torch(model, tmp_path / 'a.pt2')


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, 'PACKAGES', ('onnx', 'a_package_that_is_not_there'))
    with pytest.raises(ImportError, match=r'a_package_that_is_not_there: pip install "mmseg-davpt\[export\]"'):
        export_onnx(make_segmentor('bias', 'linear'), tmp_path / 'a.onnx', (64, 64))
