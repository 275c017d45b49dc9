"""A small Hugging Face hub on loopback: what huggingface_hub asks for, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves ``repos[repo][name] = bytes``. ``cut_after`` breaks a body off, ``lie`` swaps bytes."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.cut_after: dict[str, int] = {}
        self.lie: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((self.command, path, self.headers.get("Range", "")))
                if path.startswith("/api/models/"):
                    self.about(path.removeprefix("/api/models/").split("/revision/")[0])
                    return
                repo, _, rest = path.strip("/").partition("/resolve/")
                name = rest.partition("/")[2]
                content = hub.repos.get(repo, {}).get(name)
                if content is None:
                    self.fail(404, "EntryNotFound")
                    return
                self.file(name, content, body)

            def about(self, repo: str) -> None:
                if repo in hub.gated:
                    self.fail(403, "GatedRepo")
                elif repo not in hub.repos:
                    self.fail(401, "RepoNotFound")
                else:
                    self.say(
                        200, json.dumps(hub.describe(repo)).encode(), {"Content-Type": "application/json"}
                    )

            def file(self, name: str, content: bytes, body: bool) -> None:
                digest = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                sent = hub.lie.get(name, content)
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)
                if not body:
                    self.say(200, b"", headers, length=len(content))
                    return
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(sent) - 1}/{len(sent)}"
                part = sent[start:]
                stop = hub.cut_after.pop(name, None)
                self.say(206 if start else 200, part[:stop], headers, length=len(part))
                if stop is not None:
                    self.close_connection = True

            def fail(self, status: int, code: str) -> None:
                self.say(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

            def say(
                self, status: int, content: bytes, headers: dict[str, str], length: int | None = None
            ) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def describe(self, repo: str) -> dict[str, object]:
        siblings = []
        for name, content in self.repos[repo].items():
            row: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(row)
        return {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": []}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
