"""Archives that are damaged or malicious."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from local_server import tarred, zipped

from mmseg_davpt.datasets.prepare import archives
from mmseg_davpt.datasets.prepare.archives import unpack
from mmseg_davpt.datasets.prepare.download import DataError

DATA = np.random.default_rng(0).bytes(200_000)


class TestUnpack:
    FILES = {
        'top/images/a.jpg': b'a' * 50,
        'top/images/deep/b.jpg': b'b' * 70_000,
        'top/readme': b'no',
        'top/imagesX/c': b'',
    }

    @pytest.mark.parametrize('pack', [zipped, tarred, lambda files: tarred(files, 'w:gz')], ids=['zip', 'tar', 'gz'])
    def test_wanted_folders_alone_and_again(self, tmp_path, pack):
        archive = tmp_path / 'x'
        archive.write_bytes(pack(self.FILES))
        assert unpack(archive, tmp_path / 'out', {'top/images': 'img'}) == 2
        found = {str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*') if path.is_file()}
        assert found == {'img/a.jpg', 'img/deep/b.jpg'}
        kept = tmp_path / 'out/img/deep/b.jpg'
        before = kept.stat().st_mtime_ns
        (tmp_path / 'out/img/a.jpg').write_bytes(b'half')
        unpack(archive, tmp_path / 'out', {'top/images': 'img'})
        assert kept.stat().st_mtime_ns == before
        assert (tmp_path / 'out/img/a.jpg').read_bytes() == b'a' * 50

    @pytest.mark.parametrize('name', ['../evil', '/evil', 'top/images/../../../evil'])
    @pytest.mark.parametrize('pack', [zipped, tarred], ids=['zip', 'tar'])
    def test_nothing_is_written_outside(self, tmp_path, pack, name):
        (tmp_path / 'x').write_bytes(pack({name: b'evil'}))
        with pytest.raises(DataError, match='outside'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'': '', 'top/images': ''})
        assert not list(tmp_path.rglob('evil'))

    def test_links_are_not_followed(self, tmp_path):
        with tarfile.open(tmp_path / 'x', 'w') as archive:
            link = tarfile.TarInfo('top/link')
            link.type, link.linkname = tarfile.SYMTYPE, '/etc'
            archive.addfile(link)
            archive.addfile(tarfile.TarInfo('top/file'))
        assert unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''}) == 1
        assert [path.name for path in (tmp_path / 'out').iterdir()] == ['file']

    @pytest.mark.parametrize('pack', [zipped, tarred, lambda files: tarred(files, 'w:gz')], ids=['zip', 'tar', 'gz'])
    def test_truncated(self, tmp_path, pack):
        data = pack({'top/images/a': DATA})
        (tmp_path / 'x').write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match='damaged'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})
        assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file() and not path.name.startswith('.')]

    def test_flipped_bit(self, tmp_path):
        data = bytearray(zipped({'top/a': DATA}))
        data[1000] ^= 1
        (tmp_path / 'x').write_bytes(data)
        with pytest.raises(DataError, match='CRC'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})

    def test_another_archive(self, tmp_path):
        (tmp_path / 'x').write_bytes(zipped({'else/a': b''}))
        with pytest.raises(DataError, match='holds none of top'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})


class TestBombs:
    """Archives that unpack to far more than they hold: refused before they fill the disk."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(archives, '_SMALL', 1 << 20)

    @pytest.mark.parametrize('wanted', ['top', 'else'])
    @pytest.mark.parametrize('kind', ['zip', 'gz'])
    def test_ratio(self, tmp_path, kind, wanted):
        files = {'top/a': b'a', 'else/bomb': bytes(32 << 20)}
        if kind == 'gz':
            data = tarred(files, 'w:gz')
        else:
            content = io.BytesIO()
            with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED) as archive:
                for name, value in files.items():
                    archive.writestr(name, value)
            data = content.getvalue()
        (tmp_path / 'x').write_bytes(data)
        with pytest.raises(DataError, match='100 times its size'):
            unpack(tmp_path / 'x', tmp_path / 'out', {wanted: ''})
        assert sum(path.stat().st_size for path in (tmp_path / 'out').rglob('*')) < 1 << 20

    def test_number_of_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(archives, '_MAX_FILES', 50)
        (tmp_path / 'x').write_bytes(zipped({f'top/{index}': b'' for index in range(51)}))
        with pytest.raises(DataError, match='50 files'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})

    def test_header_of_a_tar_archive(self, tmp_path):
        """tarfile reads the extended header of a member at once, whatever length it states."""
        info = tarfile.TarInfo('header')
        info.type, info.size = tarfile.XHDTYPE, 1 << 30
        with gzip.open(tmp_path / 'x', 'wb') as file:
            file.write(info.tobuf())
            file.write(bytes(1 << 20))
        with pytest.raises(DataError, match=r'a header of more than'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'': ''})

    def test_encrypted(self, tmp_path):
        data = bytearray(zipped({'top/a': DATA}))
        for signature, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
            data[data.rindex(signature) + offset] |= 1
        (tmp_path / 'x').write_bytes(data)
        with pytest.raises(DataError, match='encrypted'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})
