"""Files that are never written in part."""

import errno
import os
from pathlib import Path

import pytest

from mmseg_davpt.files import replacing, write_atomically


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / 'a/b.txt'
    with replacing(path) as temporary:
        assert temporary == tmp_path / 'a/.b.txt.tmp'
        temporary.write_text('one')
        assert not path.exists()
    assert path.read_text() == 'one'
    write_atomically(path, b'two')
    assert path.read_text() == 'two'
    assert [file.name for file in path.parent.iterdir()] == ['b.txt']


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError, match='half way'), replacing(path) as temporary:
        temporary.write_text('ne')
        raise RuntimeError('half way')
    assert path.read_text() == 'old'
    assert [file.name for file in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.parametrize('durable', [True, False])
def test_what_reaches_the_disk(durable, tmp_path, monkeypatch):
    """The content before the rename, and the folder after it."""
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda number: synced.append(Path(os.readlink(f'/proc/self/fd/{number}')).name))
    with replacing(tmp_path / 'a.txt', durable) as temporary:
        temporary.write_text('one')
    assert synced == (['.a.txt.tmp', tmp_path.name] if durable else [])


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'a.txt could not be written: No space left on device.*--resume'):
        write_atomically(tmp_path / 'a.txt', b'one')
    assert not list(tmp_path.iterdir())
