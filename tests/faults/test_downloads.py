"""Downloads from a server that cuts, lies, changes its files, redirects and stalls: nothing wrong is ever installed."""

from collections import Counter

import numpy as np
import pytest
from local_server import digest, serving, zipped

from mmseg_davpt.datasets.prepare import download as module
from mmseg_davpt.datasets.prepare.archives import unpack
from mmseg_davpt.datasets.prepare.download import DataError, download

OLD, NEW = (zipped({'top/image': np.random.default_rng(seed).bytes(60_000 + seed)}) for seed in range(2))
# What the server does in one answer; 'changes' replaces the file before it.
FAULTS = (
    None,
    'half',
    'states more',
    'states less',
    'no length',
    'no tag',
    'page',
    'disguised page',
    'redirect',
    'another range',
    'ignores If-Range',
    'error',
    'stalls',
    'changes',
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(module.time, 'sleep', lambda seconds: None)


def one_case(generator, folder):
    """A download of up to four runs with faults, then one without. Returns how it ended."""
    pinned = bool(generator.integers(2))
    right = [OLD] if pinned else [OLD, NEW]
    with serving() as server:
        server.files['x.zip'], server.tags = OLD, bool(generator.integers(4))
        final, refused = folder / 'x.zip', 0
        for run in range(5):
            faults = [FAULTS[i] for i in generator.integers(len(FAULTS), size=generator.integers(1, 4))]
            if run == 4:
                faults = []
                server.files['x.zip'] = OLD if pinned else server.files['x.zip']
            if 'changes' in faults:
                server.files['x.zip'] = NEW
            server.faults = ['half' if fault == 'changes' else fault for fault in faults]
            try:
                download(server.url('x.zip'), final, digest(OLD) if pinned else None, tries=2, timeout=0.2)
            except DataError as error:
                refused += 1
                assert 'x.zip' in str(error)
                assert not final.exists(), faults
                continue
            assert final.read_bytes() in right, faults
            assert [path.name for path in folder.iterdir()] == ['x.zip']
            return f'installed after {refused} refusals'
    # A part of the changed file stands before the pinned one: the digest refuses it once, then it begins anew.
    assert not final.exists()
    return 'refused'


def run_cases(number, tmp_path, seed):
    generator, outcomes = np.random.default_rng(seed), Counter()
    for case in range(number):
        folder = tmp_path / str(case)
        folder.mkdir()
        outcomes[one_case(generator, folder)] += 1
    return outcomes


def test_some_downloads(tmp_path):
    assert sum(run_cases(15, tmp_path, 0).values()) == 15


@pytest.mark.faults
def test_many_downloads(tmp_path, record_property):
    outcomes = run_cases(300, tmp_path, 1)
    line = f'downloads: 300 cases, nothing wrong installed; {dict(sorted(outcomes.items()))}'
    record_property('faults', line)
    print(line)
    assert sum(count for outcome, count in outcomes.items() if outcome != 'refused') > 200


@pytest.mark.parametrize('fault', [fault for fault in FAULTS if fault])
def test_every_fault_is_survived(fault, tmp_path):
    """Each fault alone, twice in a row, without a known hash; the next run brings the file."""
    with serving() as server:
        server.files['x.zip'], server.faults = OLD, ['half', fault]
        for _ in range(3):
            try:
                download(server.url('x.zip'), tmp_path / 'x.zip', tries=1, timeout=0.2)
            except DataError:
                assert not (tmp_path / 'x.zip').exists()
        assert (tmp_path / 'x.zip').read_bytes() == OLD


def test_mutated_archives_write_nothing_outside(tmp_path):
    """Random bytes of a zip archive are changed: it is unpacked as it was, or refused."""
    generator, outcomes = np.random.default_rng(2), Counter()
    for case in range(60):
        data = bytearray(zipped({'top/a': b'a' * 300, 'top/b': b'b' * 300}))
        for position in generator.integers(len(data), size=generator.integers(1, 4)):
            data[position] = generator.integers(256)
        folder = tmp_path / str(case)
        folder.mkdir()
        (folder / 'x.zip').write_bytes(data)
        try:
            unpack(folder / 'x.zip', folder / 'out', {'top': ''})
        except DataError:
            outcomes['refused'] += 1
        else:
            outcomes['unpacked'] += 1
        inside = {path for path in folder.rglob('*') if path.is_file()} - {folder / 'x.zip'}
        assert all(path.is_relative_to(folder / 'out') for path in inside)
        whole = {path.name: path.read_bytes() for path in inside if not path.name.startswith('.')}
        assert set(whole.values()) <= {b'a' * 300, b'b' * 300}
    assert outcomes['refused'] > 30
