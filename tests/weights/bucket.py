"""A bucket of Google Cloud Storage in memory: over HTTP for tensorstore, as a file system for everything else.

What tensorstore's ``gcs`` driver asks of the JSON API (objects got by range, put, listed, deleted, with generations),
and an fsspec file system under the name that ``gcsfs`` registers. Both see one dictionary.
"""

import http.server
import io
import json
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from etils.epath import backend
from fsspec.spec import AbstractFileSystem

REGISTRY = sys.modules["fsspec.registry"]._registry  # pyright: ignore  # the package has a function of that name


class Bucket(http.server.ThreadingHTTPServer):
    """``objects``: name (bucket and path) to contents and generation; ``asked``: what tensorstore asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.lock = threading.Lock()
        self.generation = 0

    def put(self, name: str, raw: bytes) -> int:
        with self.lock:
            self.generation += 1
            self.objects[name] = raw, self.generation
            return self.generation


class Handler(http.server.BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def parts(self) -> tuple[str, dict[str, str]]:
        """``bucket/object``, and the query."""
        url = urllib.parse.urlsplit(self.path)
        query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, name = url.path.split("/b/", 1)[1].partition("/o")
        name = query.get("name", "") if "/upload/" in url.path else urllib.parse.unquote(name.strip("/"))
        full = f"{bucket}/{name}"
        self.server.asked.append((self.command, full, self.headers.get("Range")))
        return full, query

    def do_GET(self):
        name, query = self.parts()
        if name.endswith("/"):
            return self.list_objects(name, query)
        found = self.server.objects.get(name)
        if found is None:
            return self.reply(404, b"")
        raw, generation = found
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.reply(304, b"")
        headers = {"x-goog-generation": str(generation)}
        asked = self.headers.get("Range")
        if not asked:
            return self.reply(200, raw, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else len(raw) - int(last)
        stop = min(int(last) + 1, len(raw)) if first and last else len(raw)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(raw)}"
        return self.reply(206, raw[start:stop], headers)

    def list_objects(self, bucket: str, query: dict[str, str]):
        prefix = bucket + query.get("prefix", "")
        names = [name.removeprefix(bucket) for name in sorted(self.server.objects) if name.startswith(prefix)]
        self.reply(200, json.dumps({"items": [{"name": name} for name in names]}).encode())

    def do_POST(self):
        name, query = self.parts()
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        expected, present = query.get("ifGenerationMatch"), self.server.objects.get(name, (b"", 0))[1]
        if expected is not None and int(expected) != present:
            return self.reply(412, b"")
        self.reply(200, json.dumps({"name": name, "generation": str(self.server.put(name, raw))}).encode())

    def do_DELETE(self):
        name, _ = self.parts()
        self.reply(204 if self.server.objects.pop(name, None) else 404, b"")

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def file_system(bucket: Bucket) -> type[AbstractFileSystem]:
    """Directories are what the names of objects have in common, as in the real one."""

    class Files(AbstractFileSystem):
        protocol = ("gcs", "gs")
        cachable = False

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("gs://").removeprefix("gcs://").strip("/")

        def ls(self, path, detail=True, **_):
            path = self._strip_protocol(path)
            below = sorted(name for name in bucket.objects if name.startswith(f"{path}/"))
            if path in bucket.objects:
                found = {path: "file"}
            elif below:
                ends = {f"{path}/{name[len(path) + 1 :].partition('/')[0]}" for name in below}
                found = {name: "file" if name in bucket.objects else "directory" for name in sorted(ends)}
            else:
                raise FileNotFoundError(path)
            sizes = {name: len(bucket.objects[name][0]) if kind == "file" else 0 for name, kind in found.items()}
            rows = [{"name": name, "type": kind, "size": sizes[name], "created": 0} for name, kind in found.items()]
            return rows if detail else list(found)

        def info(self, path, **_):
            path = self._strip_protocol(path)
            rows = self.ls(path)
            if path in bucket.objects:
                return rows[0]
            return {"name": path, "type": "directory", "size": 0, "created": 0}

        def exists(self, path, **_):
            try:
                self.info(path)
            except FileNotFoundError:
                return False
            return True

        def isdir(self, path):
            return self.exists(path) and self.info(path)["type"] == "directory"

        def makedirs(self, path, exist_ok=False):
            pass

        mkdir = makedirs

        def _rm(self, path):
            del bucket.objects[self._strip_protocol(path)]

        def rm(self, path, recursive=False, maxdepth=None):
            path = self._strip_protocol(path)
            for name in [n for n in bucket.objects if n == path or (recursive and n.startswith(f"{path}/"))]:
                del bucket.objects[name]

        def _open(self, path, mode="rb", **_):
            path = self._strip_protocol(path)
            if mode == "rb":
                if path not in bucket.objects:
                    raise FileNotFoundError(path)
                return io.BytesIO(bucket.objects[path][0])
            return Written(path)

    class Written(io.BytesIO):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def close(self):
            if not self.closed:
                bucket.put(self.path, self.getvalue())
            super().close()

    return Files


def forget_file_systems() -> None:
    """etils keeps the one it made first."""
    type(backend.fsspec_backend)._get_filesystem.cache_clear()


@contextmanager
def served(monkeypatch) -> Iterator[Bucket]:
    """A bucket that this process takes for Google's."""
    bucket = Bucket()
    thread = threading.Thread(target=bucket.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{bucket.server_address[1]}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    for name in ("gcs", "gs"):
        monkeypatch.setitem(REGISTRY, name, file_system(bucket))
    forget_file_systems()
    yield bucket
    forget_file_systems()
    bucket.shutdown()
    bucket.server_close()
    thread.join()
