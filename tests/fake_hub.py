"""A local stand-in for the parts of the Hugging Face Hub that downloads and uploads need."""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENS = {
    "good": {"role": "write"},
    "reader": {"role": "read"},
    "fine": {
        "role": "fineGrained",
        "fineGrained": {"scoped": [{"entity": {"name": "ann"}, "permissions": ["repo.write"]}]},
    },
    "one": {
        "role": "fineGrained",
        "fineGrained": {"scoped": [{"entity": {"type": "model", "name": "ann/tiny"}, "permissions": ["repo.write"]}]},
    },
}


@dataclass
class FakeHub:
    """The models that the Hub serves, and a record of the requests."""

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)  # name, or name@revision -> folder
    sent: list[str] = field(default_factory=list)  # names of downloaded files
    repos: list[dict] = field(default_factory=list)  # created repositories
    stored: dict[str, bytes] = field(default_factory=dict)  # uploaded LFS objects
    commits: list[tuple[str, list[dict]]] = field(default_factory=list)  # path and lines of each commit
    broken: bool = False  # refuses commits
    public: bool = False  # makes every repository public


def describe(file: Path, folder: Path) -> dict:
    """Return the Hub's description of a file or folder in a repository."""
    kind = "file" if file.is_file() else "directory"
    blob_id = hashlib.sha1(file.read_bytes()).hexdigest() if file.is_file() else "0"
    return {"type": kind, "oid": blob_id, "path": str(file.relative_to(folder)), "size": file.stat().st_size}


@contextlib.contextmanager
def fake_hub():
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, code: int, content) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self):
            if self.path == "/api/whoami-v2":
                self.who_am_i()
                return
            for repo in hub.repos:
                if self.path == f"/api/models/{repo.get('organization', 'ann')}/{repo['name']}":
                    self.answer(200, {"id": repo["name"], "private": repo["private"] and not hub.public})
                    return
            for key, folder in hub.models.items():
                name, _, revision = key.partition("@")
                commit = COMMIT[::-1] if revision else COMMIT
                api = f"/api/{name}" if name.startswith("datasets/") else f"/api/models/{name}"
                revisions = {f"{api}/revision/{one}" for one in (revision or "main", commit)}
                if unquote(self.path.split("?")[0]) in revisions | ({api} if not revision else set()):
                    files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
                    self.answer(200, {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
                    return
                if bool(revision) != (COMMIT[::-1] in self.path):
                    continue
                if self.path.startswith(f"{api}/tree/"):  # used by huggingface_hub 2 and by hf://
                    below = unquote(self.path).split("?")[0].partition("/tree/")[2].partition("/")[2]
                    inside = [*(folder / below).glob("**/*" if "recursive=true" in self.path.lower() else "*")]
                    self.answer(200, [describe(file, folder) for file in inside])
                    return
                if self.path.startswith(f"/{name}/resolve/"):
                    self.send_file(folder / unquote(self.path).split("/resolve/")[1].split("/", 1)[1], commit)
                    return
            known = any(self.path.startswith(f"/api/models/{key.partition('@')[0]}/") for key in hub.models)
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def send_file(self, file: Path, commit: str) -> None:
            content, asked = file.read_bytes(), self.headers.get("Range", "").removeprefix("bytes=")
            first, _, last = asked.partition("-")
            content = content[int(first or 0) : int(last) + 1 if last else None]
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{file.parent.name}-{file.name}{commit[0]}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                hub.sent.append(file.name)
                self.wfile.write(content)

        def who_am_i(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in TOKENS:
                self.answer(401, {"error": "Invalid credentials"})
                return
            organizations = [{"name": "team", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]
            self.answer(200, {"name": "ann", "orgs": organizations, "auth": {"accessToken": TOKENS[token]}})

        def do_PUT(self):
            hub.stored[self.path.rsplit("/", 1)[1]] = self.body()
            self.answer(200, {})

        def do_POST(self):
            path, body = self.path.split("?")[0], self.body()
            if path.endswith("/paths-info/main"):
                folder = hub.models[path.removeprefix("/api/").removesuffix("/paths-info/main")]
                asked = [folder / name for name in parse_qs(body.decode()).get("paths", [])]
                self.answer(200, [describe(file, folder) for file in asked if file.exists()])
            elif path == "/api/repos/create" and self.headers.get("Authorization") == "Bearer one":
                self.answer(403, {"error": "this token is for one repository"})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                hub.repos.append(asked | {"private": asked.pop("visibility", "") == "private" or asked.get("private")})
                made = hub.repos[-1]
                self.answer(200, {"url": f"{hub.url}/{made.get('organization', 'ann')}/{made['name']}"})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = [
                    {"path": file["path"], "shouldIgnore": False}
                    | {"uploadMode": "lfs" if file["path"].endswith(".onnx") else "regular"}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = [
                    o | {"actions": {"upload": {"href": f"{hub.url}/store/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in path and not hub.broken:
                hub.commits.append((self.path, [json.loads(line) for line in body.splitlines()]))
                place = path.removeprefix("/api/models/").split("/commit/")[0]
                result = {"success": True, "commitUrl": f"{hub.url}/{place}/commit/1", "commitOid": "1"}
                if "create_pr=1" in self.path:
                    result |= {"pullRequestUrl": f"{hub.url}/{place}/discussions/7"}
                self.answer(200, result)
            else:
                self.answer(403 if hub.broken else 404, {"error": "no"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
