"""A small hub on this machine that speaks the Hugging Face hub's HTTP."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
from huggingface_hub import HfApi

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: create, commit, list and download, all files as regular ones."""

    repositories: dict[str, dict[str, bytes]]

    def log_message(self, *_):
        pass

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            name = json.loads(body)
            full = "/".join(filter(None, [name.get("organization"), name["name"]]))
            self.repositories.setdefault(full, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{full}"})
        if self.path.startswith("/api/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            wanted = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in wanted]
            return self.answer({"files": modes})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.repositories[found[1]][entry["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}"
            return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        return self.answer({"error": "not here"}, 404)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+?))?", path):
            name = found[1]
            if name not in self.repositories:
                return self.answer({"error": "Repository not found"}, 404, [("X-Error-Code", "RepoNotFound")])
            files = [{"rfilename": file} for file in self.repositories[name]]
            return self.answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False})
        if found := re.fullmatch(r"/api/models/(.+?)/tree/(.+?)", path):
            files = self.repositories[found[1]]
            return self.answer(
                [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            )
        if found := re.fullmatch(r"/(.+?)/resolve/(.+?)/(.+)", path):
            content = self.repositories.get(found[1], {}).get(found[3])
            if content is not None:
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.answer(content, headers=[("ETag", tag), ("X-Repo-Commit", COMMIT)])
        return self.answer({"error": "not here"}, 404, [("X-Error-Code", "EntryNotFound")])

    do_HEAD = do_GET


@contextmanager
def serving(cache, monkeypatch):
    """A client of a fresh hub; downloads go through it too, into the folder `cache`."""
    Hub.repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_test")
    download = huggingface_hub.snapshot_download

    def from_here(name, **options):
        return download(name, endpoint=client.endpoint, cache_dir=cache, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_here)
    yield client
    server.shutdown()
    thread.join()
    server.server_close()
