"""A server on loopback that can stop in the middle or say something else than it does, and small archives."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from contextlib import contextmanager

PAGE = b'<!DOCTYPE html><html><body>Please log in</body></html>'


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; notes what was asked; can stop in the middle, or know no ranges.

    Attributes:
        faults: What the next answers do, in their order; see ``Handler``.
        tags: Whether answers name the version of their file (``ETag``).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.cut, self.ranges = {}, [], 0, True
        self.faults, self.tags, self.stopped = [], True, threading.Event()

    def url(self, name):
        return f'http://127.0.0.1:{self.server_port}/{name}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, wanted = self.path.lstrip('/'), self.headers.get('Range')
        self.server.asked.append((name, wanted))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == 'error':
            return self.send_error(503)
        if fault == 'redirect':
            self.send_response(302)
            self.send_header('Location', 'http://plain.invalid/file')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        if fault in ('page', 'disguised page'):
            self.send_response(200)
            self.send_header('Content-Type', 'text/html' if fault == 'page' else 'application/zip')
            self.send_header('Content-Length', str(len(PAGE)))
            self.end_headers()
            return self.wfile.write(PAGE)
        if name not in self.server.files:
            return self.send_error(404)
        data = self.server.files[name]
        tag = f'"{hashlib.md5(data).hexdigest()}"' if self.server.tags and fault != 'no tag' else None
        same = self.headers.get('If-Range') in (None, tag) or fault == 'ignores If-Range'
        start = int(wanted.removeprefix('bytes=').rstrip('-')) if wanted and self.server.ranges and same else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(data)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        if fault == 'another range':
            start = max(start - 7, 1)
        self.send_response(206 if start else 200)
        if tag is not None:
            self.send_header('ETag', tag)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        length = len(data) - start
        if fault != 'no length':
            stated = {'states more': length + 1000, 'states less': length // 2}.get(fault, length)
            self.send_header('Content-Length', str(stated))
        self.end_headers()
        half = start + max(1, length // 2)
        if fault in ('half', 'no length', 'stalls'):
            self.wfile.write(data[start:half])
            if fault == 'stalls':
                self.wfile.flush()
                self.server.stopped.wait(5)
            self.close_connection = True
            return None
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
        server.stopped.set()
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
