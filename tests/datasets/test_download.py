"""Downloads that are interrupted, refused or wrong."""

import hashlib

import numpy as np
import pytest
from local_server import digest, serving, zipped

from mmseg_davpt.datasets.prepare import SOURCES
from mmseg_davpt.datasets.prepare import download as module
from mmseg_davpt.datasets.prepare.download import DataError, download


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
            ('page', 'is a web page, not a file: it may need a login'),
            ('disguised page', 'it is a web page'),
            ('states more', '200,000 of 201,000 bytes came|IncompleteRead'),
            ('no length', 'gives no length'),
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
