"""A server on loopback that can stop in the middle, and small archives."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; notes what was asked; can stop in the middle, or know no ranges."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.cut, self.ranges = {}, [], 0, True

    def url(self, name):
        return f'http://127.0.0.1:{self.server_port}/{name}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, wanted = self.path.lstrip('/'), self.headers.get('Range')
        self.server.asked.append((name, wanted))
        if name not in self.server.files:
            return self.send_error(404)
        data = self.server.files[name]
        start = int(wanted.removeprefix('bytes=').rstrip('-')) if wanted and self.server.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(data)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        if self.server.cut:  # the connection ends after that many bytes
            self.server.cut, end = 0, start + self.server.cut
            return self.wfile.write(data[start:end])
        return self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """A running server."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def digest(data):
    return f'md5:{hashlib.md5(data).hexdigest()}'


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(files, mode='w'):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()
