"""A bucket of Google Cloud Storage in memory, over HTTP, and as a file system for this process.

What tensorstore's ``gcs`` driver and ``gcsfs`` ask of the JSON API (objects got by range, put, listed, copied, deleted,
with generations), and an fsspec file system under the name that ``gcsfs`` registers, for where that is not installed.
All see one dictionary.
"""

import base64
import hashlib
import http.server
import io
import itertools
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
        self.buckets, self.forbidden = {"bucket"}, {"forbidden"}
        self.begun: dict[str, bytes] = {}
        self.uploads = itertools.count()
        self.asked: list[tuple[str, str, str | None]] = []
        self.lock = threading.Lock()
        self.generation = 0

    def copy(self) -> dict[str, tuple[bytes, int]]:
        """All objects at one moment."""
        with self.lock:
            return dict(self.objects)

    def names(self) -> list[str]:
        return list(self.copy())

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
        if not self.known_bucket():
            return
        name, query = self.parts()
        if name.endswith("/"):
            return self.list_objects(name, query)
        found = self.server.objects.get(name)
        if found is None:
            return self.reply(404, b"")
        raw, generation = found
        if "alt" not in query and "/download/" not in self.path:
            return self.reply(200, json.dumps(described(name, raw, generation)).encode())
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.reply(304, b"")
        headers = {"x-goog-generation": str(generation)}
        asked = self.headers.get("Range")
        if not asked:
            return self.reply(200, raw, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else len(raw) - int(last)
        stop = min(int(last) + 1, len(raw)) if first and last else len(raw)
        if start >= len(raw):
            return self.reply(416, b"")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(raw)}"
        return self.reply(206, raw[start:stop], headers)

    def known_bucket(self) -> bool:
        """Replies if the path names a bucket that does not exist, or only a bucket."""
        bucket = urllib.parse.urlsplit(self.path).path.partition("/b/")[2].partition("/")[0]
        if bucket in self.server.forbidden:
            self.reply(403, b'{"error": {"code": 403, "message": "no permission"}}')
        elif bucket not in self.server.buckets:
            self.reply(404, b"")
        elif self.path.partition("?")[0].endswith(f"/b/{bucket}"):
            self.reply(200, json.dumps({"name": bucket}).encode())
        else:
            return True
        return False

    def list_objects(self, bucket: str, query: dict[str, str]):
        """With a delimiter, names below a further one are listed as what they begin with."""
        prefix = bucket + query.get("prefix", "")
        found = [(name, *value) for name, value in sorted(self.server.copy().items()) if name.startswith(prefix)]
        first, end = bucket + query.get("startOffset", ""), query.get("endOffset")
        found = [item for item in found if item[0] >= first and (end is None or item[0] < bucket + end)]
        below = lambda name: query.get("delimiter") and query["delimiter"] in name[len(prefix) :]
        folders = {prefix + name[len(prefix) :].partition("/")[0] + "/" for name, _, _ in found if below(name)}
        items = [described(*item) for item in found if not below(item[0])]
        names = [name.removeprefix(bucket) for name in sorted(folders)]
        self.reply(200, json.dumps({"items": items, "prefixes": names}).encode())

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if "/batch/" in self.path:
            return self.delete_batch(raw)
        if not self.known_bucket():
            return
        name, query = self.parts()
        if "upload" in query:
            return self.put_part(name, raw)
        if "/rewriteTo/" in name:
            source, _, target = name.partition("/rewriteTo/b/")
            name, raw = target.replace("/o/", "/", 1), self.server.objects[source][0]
        elif query.get("uploadType") == "multipart":
            about, raw = multipart(raw)
            name += about["name"]
        elif query.get("uploadType") == "resumable":
            where = f"http://{self.headers['Host']}{self.path}"
            return self.reply(200, b"{}", {"Location": f"{where}&upload={next(self.server.uploads)}"})
        expected, present = query.get("ifGenerationMatch"), self.server.objects.get(name, (b"", 0))[1]
        if expected is not None and int(expected) != present:
            return self.reply(412, b"")
        generation = self.server.put(name, raw)
        about = described(name, raw, generation)
        self.reply(200, json.dumps(about | {"done": True, "resource": about}).encode())

    def put_part(self, name: str, raw: bytes):
        """Takes a part of a resumable upload; the last one tells the whole size."""
        begun = self.server.begun[self.path] = self.server.begun.get(self.path, b"") + raw
        if self.headers["Content-Range"].endswith("/*"):
            return self.reply(308, b"", {"Range": f"bytes=0-{len(begun) - 1}"})
        generation = self.server.put(name, self.server.begun.pop(self.path))
        self.reply(200, json.dumps(described(name, begun, generation)).encode())

    def do_DELETE(self):
        if self.known_bucket():
            name, _ = self.parts()
            self.reply(204 if self.server.objects.pop(name, None) else 404, b"")

    def delete_batch(self, raw: bytes):
        replies = []
        for line in raw.decode().splitlines():
            if line.startswith("DELETE "):
                bucket, _, name = line.split()[1].partition("?")[0].split("/b/", 1)[1].partition("/o/")
                gone = self.server.objects.pop(f"{bucket}/{urllib.parse.unquote(name)}", None)
                replies.append(f"Content-Type: application/http\r\n\r\nHTTP/1.1 {204 if gone else 404} x\r\n\r\n")
        body = "".join(f"--batch\r\n{reply}\r\n" for reply in replies) + "--batch--"
        self.reply(200, body.encode(), {"Content-Type": "multipart/mixed; boundary=batch"})

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def described(name: str, raw: bytes, generation: int) -> dict[str, str]:
    bucket, _, key = name.partition("/")
    digest = base64.b64encode(hashlib.md5(raw).digest()).decode()
    return {"bucket": bucket, "name": key, "size": str(len(raw)), "generation": str(generation), "md5Hash": digest}


def multipart(raw: bytes) -> tuple[dict[str, str], bytes]:
    """The description and the content of an object, as gcsfs sends them."""
    boundary = raw.split(b"\n", 1)[0].rstrip()
    _, about, rest = raw.split(boundary + b"\n", 2)
    content = rest.split(b"\n\n", 1)[1].rsplit(b"\n" + boundary, 1)[0]
    return json.loads(about.split(b"\n\n", 1)[1]), content


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
            rows = [{"name": name, "type": kind, "size": 0, "created": 0} for name, kind in found.items()]
            for row in rows:
                if row["type"] == "file":
                    about = described(row["name"], *bucket.objects[row["name"]])
                    row |= {"size": int(about["size"]), "md5Hash": about["md5Hash"]}
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
def running() -> Iterator[Bucket]:
    """A bucket that other processes reach; see ``environment``."""
    bucket = Bucket()
    thread = threading.Thread(target=bucket.serve_forever, daemon=True)
    thread.start()
    yield bucket
    bucket.shutdown()
    bucket.server_close()
    thread.join()


def environment(bucket: Bucket) -> dict[str, str]:
    """What makes tensorstore and gcsfs take a bucket for Google's."""
    address = f"http://127.0.0.1:{bucket.server_address[1]}"
    return {
        "TENSORSTORE_GCS_HTTP_URL": address,
        "STORAGE_EMULATOR_HOST": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


@contextmanager
def served(monkeypatch) -> Iterator[Bucket]:
    """A bucket that this process takes for Google's."""
    with running() as bucket:
        for name, value in environment(bucket).items():
            monkeypatch.setenv(name, value)
        for name in ("gcs", "gs"):
            monkeypatch.setitem(REGISTRY, name, file_system(bucket))
        forget_file_systems()
        yield bucket
        forget_file_systems()
