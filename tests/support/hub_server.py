"""A hub on loopback: repositories are made and written by commits, and read, as `huggingface_hub` asks for it."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class HubServer:
    """Attributes: `repos`, of each its files by name; `private`, those that are; `token`, the one that may write."""

    def __init__(self, token="hf_test"):
        self.repos, self.private, self.token, self.messages = {}, set(), token, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != f"Bearer {hub.token}":
                    return self.answer(401, {"error": "Invalid credentials in Authorization header"})
                self.answer(200, hub.post(self.path.partition("?")[0], body))

            def do_GET(self):
                self.read(True)

            def do_HEAD(self):
                self.read(False)

            def read(self, body):
                owner, name, *rest = self.path.partition("?")[0].strip("/").split("/")
                content = hub.repos.get(f"{owner}/{name}", {}).get("/".join(rest[2:]))
                if rest[:1] != ["resolve"] or content is None:
                    code = "EntryNotFound" if f"{owner}/{name}" in hub.repos else "RepoNotFound"
                    return self.answer(404, {}, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
                etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self.answer(200, content if body else b"", etag | {"Content-Length": str(len(content))})

            def answer(self, status, body, headers=None):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def post(self, path, body):
        """What the hub answers; a commit's files are in its lines, base64."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repos.setdefault(repo, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(repo)
            return {"url": f"{self.url}/{repo}", "name": repo, "id": repo}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        owner, name, action, _ = path.removeprefix("/api/models/").split("/")
        repo = f"{owner}/{name}"
        if action == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return {"files": [each | {"shouldIgnore": False} for each in files]}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                self.messages.append(entry["value"]["summary"])
            else:
                self.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{repo}/commit/{COMMIT}"}

    def close(self):
        self.server.shutdown()
        self.server.server_close()
