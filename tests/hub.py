"""A model hub on the loopback, as far as downloads need one: real requests, no network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as models; gives the address, and the paths asked for as they come."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            for name, folder in models.items():
                if self.path.partition("?")[0] in (
                    f"/api/models/{name}",
                    *(f"/api/models/{name}/revision/{revision}" for revision in ("main", "v1", COMMIT)),
                ):
                    files = sorted(file for file in folder.rglob("*") if file.is_file())
                    siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
                    told = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}
                    return self._send(json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
                if self.path.startswith(f"/api/models/{name}/tree/{COMMIT}"):
                    files = sorted(file for file in folder.rglob("*") if file.is_file())
                    tree = [
                        {
                            "type": "file",
                            "path": file.relative_to(folder).as_posix(),
                            "size": file.stat().st_size,
                            "oid": "",
                        }
                        for file in files
                    ]
                    return self._send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
                for revision in ("main", "v1", COMMIT):
                    start = f"/{name}/resolve/{revision}/"
                    if self.path.startswith(start) and (file := folder / self.path.removeprefix(start)).is_file():
                        content = file.read_bytes()
                        large = file.suffix in (".safetensors", ".bin")
                        digest = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
                        return self._send(content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}, body)
            self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, body, 404)

        def _send(self, content: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
