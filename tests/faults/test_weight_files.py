"""Hostile and damaged weight files: a named error in bounded time and memory, never other values without a notice."""

import io
import json
import random
import subprocess
import sys
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from faults.hostile_files import BOMBS, TENSORS
from foreign_formats import jax_arrays, random_, vit
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmseg_davpt.weights.formats import hash_file

WITHOUT_CHECKSUM = ('legacy.pth', 'w.safetensors')
MEGABYTES = 250  # that reading one small file may add; the bombs want more


def read_in_child(tmp_path, files):
    """Read ``(file, intact file)`` pairs in another process with limits."""
    cases = tmp_path / 'cases.json'
    cases.write_text(json.dumps([[str(file), intact and str(intact)] for file, intact in files]))
    process = subprocess.run(
        [sys.executable, '-c', 'import mmseg_davpt; from faults.reader_child import main; main()', str(cases)],
        env=dict(PATH='/usr/bin:/bin', PYTHONPATH=f'{ROOT / "tests"}:{ROOT}', OMP_NUM_THREADS='1'),
        capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"file"')]
    assert len(lines) == len(files), f'the reader died at {files[len(lines)]}: {process.stderr[-2000:]}'
    return lines


def assert_bounded(lines):
    for line in lines:
        assert not line['outcome'].startswith('FAILED'), line
        assert line['seconds'] < 15, line
        assert line['megabytes'] < MEGABYTES, line


@pytest.fixture(scope='module')
def fast(tmp_path_factory):
    """Group -> files and lines of the reader: one process reads all files of the fast tests."""
    folder = tmp_path_factory.mktemp('fast')
    for name in ('hostile', 'intact', 'damage', 'fuzz', 'hashed'):
        (folder / name).mkdir()
    groups = dict(
        hostile=[(write(folder / f'hostile/{i}.pth'), None) for i, write in enumerate({**BOMBS, **TENSORS}.values())],
        intact=[(file, file) for file in weight_files(folder / 'intact').values()],
        damaged=list(mutate(folder / 'damage', 60, seed=0)),
        hashed=write_hashes(mutate(folder / 'hashed', 60, seed=0)),
        fuzzed=list(fuzz_headers(folder / 'fuzz', 300, seed=0)),
    )
    lines = iter(read_in_child(folder, [file for files in groups.values() for file in files]))
    return {group: [(next(lines), file) for file in files] for group, files in groups.items()}


@pytest.fixture
def hostile(fast):
    """Kind -> the line of the reader."""
    return {kind: line for kind, (line, _) in zip([*BOMBS, *TENSORS], fast['hostile'])}


@pytest.mark.parametrize('kind', [*BOMBS, *TENSORS])
def test_refused_with_name_in_bounded_time_and_memory(hostile, kind):
    line = hostile[kind]
    assert_bounded([line])
    assert line['outcome'].startswith('refused: '), line


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('quantized', 'quantized tensor'),
        ('sparse', 'sparse tensor'),
        ('meta', 'meta tensor'),
        ('one int8 tensor', 'blocks.1.norm1.weight is int8 instead of float32'),
        ('bool', 'cls_token is bool instead of float32'),
        ('NaN', 'blocks.1.norm1.weight holds 32 values that are not finite'),
        ('NaN in legacy', 'norm.bias holds 32 values that are not finite'),
        ('infinite in float32', 'values that are not finite'),
        ('npz of objects', 'array of objects'),
        ('list that holds itself', 'contains itself'),
        ('tuples doubled', 'values when written out'),
        ('lists doubled', 'values when written out'),
        ('doubled tuple as a key', 'a key of a mapping is tuple'),
        ('doubled tuple in a set', 'a key of a mapping is tuple'),
        ('nested very deep', 'levels deep'),
        ('keys that collide', 'a key of a mapping is int'),
        ('copies of a set', 'copies values again and again'),
        ('hex of hex', '(_codecs.encode)'),
        ('bytearray', 'builtins.bytearray'),
        ('index of the memo', 'no tensors in it'),
        ('tensor repeated by strides of 0', 'does not fit into its storage'),
        ('legacy storage larger than the file', 'more bytes (68719476736) than the file'),
        ('many small objects', 'more than 2000000 parts'),
        ('compressed zeros', 'larger than the file'),
    ],
)
def test_the_message_says_what_is_wrong(hostile, kind, words):
    assert words in hostile[kind]['outcome']


def weight_files(folder):
    """Small intact files of all formats: name -> path."""
    torch.manual_seed(3)
    state = random_(vit()).state_dict()
    torch.save(dict(model=state, epoch=3), folder / 'zip.pth')
    torch.save(state, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(state, folder / 'w.safetensors')
    np.savez(folder / 'w.npz', **jax_arrays(state))
    optimizer = dict(state={0: dict(exp_avg=torch.randn(9), step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1)])
    content = dict(
        meta=dict(epoch=0, iter=3, seed=1, cfg='a = 1'),
        state_dict=state,
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))),
        optimizer=optimizer,
    )
    torch.save(content, folder / 'iter_3.pth')
    return {file.name: file for file in sorted(folder.iterdir())}


def damage(data, rng):
    """One mutation; returns its kind and the bytes."""
    data = bytearray(data)
    kind = rng.choice(['bit', 'bit', 'byte', 'cut', 'zeros', 'swap', 'insert', 'delete', 'header', 'tail'])
    at = rng.randrange(len(data))
    if kind == 'bit':
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 'byte':
        data[at] = rng.randrange(256)
    elif kind == 'cut':
        del data[at:]
    elif kind == 'zeros':
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == 'swap':  # blocks of the file change places
        other = rng.randrange(len(data))
        size = min(4096, len(data) - max(at, other))
        data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
    elif kind == 'insert':
        data[at:at] = rng.randbytes(rng.randrange(1, 64))
    elif kind == 'delete':
        del data[at : at + rng.randrange(1, 64)]
    else:  # where the structure is
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(min(2000, len(data)))
            data[at if kind == 'header' else -at - 1] = rng.randrange(256)
    return kind, bytes(data)


def mutate(folder, count, seed):
    """``(damaged file, intact file)`` of all formats in turn."""
    rng = random.Random(seed)
    (folder / 'intact').mkdir()
    (folder / 'damaged').mkdir()
    originals = list(weight_files(folder / 'intact').values())
    for index in range(count):
        original = originals[index % len(originals)]
        kind, data = damage(original.read_bytes(), rng)
        name = f'iter_{index}.pth' if original.name.startswith('iter_') else f'{index}_{kind}{original.suffix}'
        file = folder / 'damaged' / name
        file.write_bytes(data)
        yield file, original


def write_hashes(files):
    """The ``(damaged file, intact file)`` pairs; beside each damaged file stands the hash of the intact one."""
    files = list(files)
    for file, original in files:
        file.with_name(f'{file.name}.sha256').write_text(f'{hash_file(original)}  {file.name}\n')
    return files


NOTICED = 'read with other values and the notice that the file has no checksum'


def assert_nothing_silent(lines, files):
    """The same values, an error, or the notice that nothing could be checked; returns the outcomes, counted."""
    assert_bounded(lines)
    outcomes = Counter()
    for line, (file, original) in zip(lines, files):
        outcome = line['outcome'].split(':')[0]
        if outcome == 'other values':
            assert original.name in WITHOUT_CHECKSUM, line
            assert_notice(line, file)
            outcome = NOTICED
        assert outcome in ('refused', 'identical', NOTICED), line
        outcomes[outcome] += 1
    return dict(outcomes)


def assert_notice(line, file):
    command = f'python tools/get_weights.py --checksum {file}'
    assert line['check'] == f'Not checked: the file has no checksum; write one: {command}', line


def test_damaged_files(fast):
    lines, files = zip(*fast['damaged'])
    outcomes = assert_nothing_silent(lines, files)
    assert outcomes['refused'] > 20
    assert outcomes[NOTICED] > 5


def test_damaged_files_beside_the_hash_of_the_intact_one(fast):
    """The files of the test before: all weight files are refused, but for a mutation that changes no byte."""
    for line, (file, original) in fast['hashed']:
        if original.name != 'iter_3.pth':
            same = file.read_bytes() == original.read_bytes()
            assert line['outcome'] == 'identical' if same else 'has another SHA-256' in line['outcome'], line


def test_intact_files_are_read(fast):
    assert [line['outcome'] for line, _ in fast['intact']] == ['identical'] * 5


def test_the_log_says_which_files_are_checked(fast):
    """By their hash, or by checksums of their format."""
    checks = {file.name: line for line, (file, _) in fast['intact']}
    for name in WITHOUT_CHECKSUM:
        assert_notice(checks[name], next(file for _, (file, _) in fast['intact'] if file.name == name))
    for name in ('zip.pth', 'w.npz'):
        assert checks[name]['check'] == 'Checked: CRC-32 of the records in the archive'


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_thousand_damaged_files(tmp_path):
    start = time.perf_counter()
    files = list(mutate(tmp_path, 1000, seed=1))
    lines = read_in_child(tmp_path, files)
    outcomes = assert_nothing_silent(lines, files)
    with_hash = write_hashes(pair for line, pair in zip(lines, files) if line['outcome'] == 'other values')
    assert all('has another SHA-256' in line['outcome'] for line in read_in_child(tmp_path, with_hash))
    print(f'\nmutated weight and checkpoint files: 1000 cases, {outcomes}, {time.perf_counter() - start:.0f} s')


def fuzz_headers(folder, count, seed):
    """Tiny files whose headers and pickles are damaged in several places."""
    rng = random.Random(seed)
    (folder / 'tiny').mkdir()
    torch.manual_seed(3)
    state = {'cls_token': torch.ones(2), 'n': torch.ones(1)}
    torch.save(state, folder / 'tiny/zip.pth')
    torch.save(state, folder / 'tiny/legacy.pth', _use_new_zipfile_serialization=False)
    save_file(state, folder / 'tiny/w.safetensors')
    np.savez(folder / 'tiny/w.npz', **{'embedding/kernel': np.ones((1, 1, 2, 2), np.float32)})
    torch.save(dict(state_dict=state, meta=dict(iter=3, epoch=0), optimizer={}), folder / 'tiny/iter_3.pth')
    originals = sorted((folder / 'tiny').iterdir())
    for index in range(count):
        original = originals[index % len(originals)]
        data = bytearray(original.read_bytes())
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256), rng.randrange(256)])
        if original.suffix == '.pth' and index % 3 == 0:  # past the checksum: the pickle itself
            data = repaired(original, rng)
        name = f'iter_{index}.pth' if original.name.startswith('iter_') else f'{index}{original.suffix}'
        file = folder / name
        file.write_bytes(data)
        yield file, None


def repaired(original, rng):
    """The file with a damaged pickle, under a checksum that fits."""
    if not zipfile.is_zipfile(original):
        data = bytearray(original.read_bytes())
        data[rng.randrange(len(data))] = rng.randrange(256)
        return data
    target = io.BytesIO()
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(target, 'w') as archive:
        for name in source.namelist():
            content = bytearray(source.read(name))
            if name.endswith('data.pkl'):
                for _ in range(rng.randrange(1, 6)):
                    content[rng.randrange(len(content))] = rng.randrange(256)
            archive.writestr(name, bytes(content))
    return target.getvalue()


def count_outcomes(lines):
    assert_bounded(lines)
    return dict(Counter(line['outcome'].split(':')[0] for line in lines))


def test_fuzzed_headers(fast):
    assert count_outcomes([line for line, _ in fast['fuzzed']])['refused'] > 200


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_ten_thousand_fuzzed_headers(tmp_path):
    start = time.perf_counter()
    outcomes = count_outcomes(read_in_child(tmp_path, list(fuzz_headers(tmp_path, 10_000, seed=1))))
    print(f'\nfuzzed headers: 10000 cases, {outcomes}, {time.perf_counter() - start:.0f} s')
