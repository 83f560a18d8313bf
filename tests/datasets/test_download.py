"""Downloads that are interrupted, refused or wrong; archives that are damaged or malicious."""

import gzip
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from local_server import digest, serving, tarred, zipped

from mmseg_davpt.datasets.prepare import SOURCES
from mmseg_davpt.datasets.prepare import download as module
from mmseg_davpt.datasets.prepare.download import DataError, download, unpack


@pytest.fixture
def server():
    with serving() as server:
        yield server


DATA = np.random.default_rng(0).bytes(200_000)
NEW = np.random.default_rng(1).bytes(200_000)


class TestDownload:
    def get(self, server, tmp_path, known=None, **options):
        return download(server.url('file'), tmp_path / 'd/file', known, **({'tries': 1} | options))

    def test_whole(self, server, tmp_path):
        server.files['file'] = DATA
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA
        assert [path.name for path in (tmp_path / 'd').iterdir()] == ['file']
        self.get(server, tmp_path, digest(DATA))
        assert len(server.asked) == 1  # what is there is not asked for again

    def test_interrupted_and_resumed(self, server, tmp_path):
        server.files['file'], server.cut = DATA, 50_000
        with pytest.raises(DataError, match=r'50,000 of 200,000 bytes came|IncompleteRead.*(.|\n)*Run this again'):
            self.get(server, tmp_path)
        assert (tmp_path / 'd/file.part').read_bytes() == DATA[:50_000]
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA
        assert server.asked == [('file', None), ('file', 'bytes=50000-')]

    def test_goes_on_by_itself(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(module.time, 'sleep', lambda seconds: None)
        server.files['file'], server.cut = DATA, 50_000
        assert self.get(server, tmp_path, digest(DATA), tries=2).read_bytes() == DATA
        assert server.asked[1] == ('file', 'bytes=50000-')

    def test_server_without_ranges(self, server, tmp_path):
        server.files['file'], server.cut, server.ranges = DATA, 50_000, False
        with pytest.raises(DataError):
            self.get(server, tmp_path)
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA

    @pytest.mark.parametrize('known', [True, False])
    def test_complete_part_needs_no_byte(self, server, tmp_path, known):
        server.files['file'] = DATA
        (tmp_path / 'd').mkdir()
        (tmp_path / 'd/file.part').write_bytes(DATA)
        if not known:
            (tmp_path / 'd/file.part.version').write_text(f'"{hashlib.md5(DATA).hexdigest()}"')
        assert self.get(server, tmp_path, digest(DATA) if known else None).read_bytes() == DATA
        assert [path.name for path in (tmp_path / 'd').iterdir()] == ['file']
        assert server.asked == [('file', f'bytes={len(DATA)}-')]

    def test_part_longer_than_the_file(self, server, tmp_path):
        server.files['file'] = DATA
        (tmp_path / 'd').mkdir()
        (tmp_path / 'd/file.part').write_bytes(DATA + b'more')
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA
        assert [wanted for _, wanted in server.asked] == ['bytes=200004-', None]

    def test_part_of_an_unknown_version_is_not_continued(self, server, tmp_path):
        server.files['file'] = DATA
        (tmp_path / 'd').mkdir()
        (tmp_path / 'd/file.part').write_bytes(b'of another file')
        assert self.get(server, tmp_path).read_bytes() == DATA
        assert server.asked == [('file', None)]

    @pytest.mark.parametrize('fault', [None, 'ignores If-Range', 'another range'])
    def test_file_that_changes_between_two_parts(self, server, tmp_path, fault, monkeypatch):
        """``If-Range``: the rest of a new version never follows on the beginning of the old one."""
        monkeypatch.setattr(module.time, 'sleep', lambda seconds: None)
        server.files['file'], server.cut = DATA, 50_000
        with pytest.raises(DataError):
            self.get(server, tmp_path)
        server.files['file'], server.faults = NEW, [fault]
        assert self.get(server, tmp_path, tries=2).read_bytes() == NEW
        assert server.asked[1] == ('file', 'bytes=50000-')

    @pytest.mark.parametrize(
        ('fault', 'message'),
        [
            ('page', 'is a web page, not a file: does it want a login'),
            ('disguised page', 'it is a web page'),
            ('states more', '200,000 of 201,000 bytes came|IncompleteRead'),
            ('no length', 'does not say how long'),
            ('redirect', 'only https is safe'),
            ('error', '503'),
        ],
    )
    def test_what_is_no_file_is_never_installed(self, server, tmp_path, fault, message):
        server.files['file'], server.faults = DATA, [fault]
        with pytest.raises(DataError, match=message):
            self.get(server, tmp_path)
        assert not (tmp_path / 'd/file').exists()
        assert self.get(server, tmp_path).read_bytes() == DATA

    def test_zip_archive_shorter_than_it_was_is_noticed_without_a_hash(self, server, tmp_path):
        server.files['x.zip'], server.faults = zipped({'a': DATA}), ['states less']
        with pytest.raises(DataError, match=r'no complete zip archive\. Removed'):
            download(server.url('x.zip'), tmp_path / 'x.zip', tries=1)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize('url', ['http://plain.invalid/file', 'file:///etc/hostname', 'ftp://plain.invalid/file'])
    def test_unsafe_addresses(self, tmp_path, url):
        with pytest.raises(DataError, match=r'without a known hash .* only https is safe'):
            download(url, tmp_path / 'file', tries=1)

    def test_plain_http_with_a_hash(self, tmp_path):
        with pytest.raises(DataError, match='Run this again'):  # no such host: the address itself is accepted
            download('http://plain.invalid/file', tmp_path / 'file', digest(DATA), tries=1)

    def test_every_source_is_https_or_has_a_hash(self):
        archives = [archive for source in SOURCES.values() for archive in source.archives if archive.url]
        assert len(archives) > 5
        assert all(archive.url.startswith('https://') or archive.digest for archive in archives)

    def test_wrong_hash(self, server, tmp_path):
        server.files['file'] = b'another file'
        with pytest.raises(DataError, match=r'not the expected file: expected md5:\w+, got md5:\w+. Removed'):
            self.get(server, tmp_path, digest(DATA))
        assert list((tmp_path / 'd').iterdir()) == []
        (tmp_path / 'd/file').write_bytes(b'put there by hand')
        with pytest.raises(DataError, match='delete it and run this again'):
            self.get(server, tmp_path, digest(DATA))
        assert (tmp_path / 'd/file').is_file()  # not ours to delete

    def test_what_the_server_says(self, server, tmp_path):
        with pytest.raises(DataError, match='404'):
            self.get(server, tmp_path)
        url = server.url('file')
        server.shutdown()
        server.server_close()
        with pytest.raises(DataError, match=r'refused.*Run this again'):
            download(url, tmp_path / 'file', tries=1)

    def test_full_disk_is_reported_first(self, server, tmp_path, monkeypatch):
        server.files['file'] = DATA
        monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: type('Usage', (), dict(free=300_000)))
        with pytest.raises(DataError, match=r'200,000 bytes\) and its contents need'):
            self.get(server, tmp_path)
        assert not (tmp_path / 'd/file.part').exists()


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
        monkeypatch.setattr(module, '_SMALL', 1 << 20)

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
        monkeypatch.setattr(module, '_MAX_FILES', 50)
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
