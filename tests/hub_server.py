"""A hub on this machine, for tests: the part of the real one's protocol that a download needs, over a folder."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """folder: what every repository holds but those in `others`, {name: folder}; fault: "", "gated", "repo", "revision", "cut", which breaks large files off
    in the middle, "cut once", or "stall", which keeps their second halves back; stalled: set when it does; asked: (method, path, range) of every request."""

    def __init__(self, folder, others):
        self.folder, self.others, self.fault, self.asked = Path(folder), others, "", []
        self.stalled, self.over = threading.Event(), threading.Event()

    def files(self, address):
        folder = next((folder for name, folder in self.others.items() if f"/{name}/" in address), self.folder)
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def info(self, address):
        siblings = []
        for name, path in self.files(address).items():
            told = {"rfilename": name, "size": path.stat().st_size, "blobId": hashlib.sha1(path.read_bytes()).hexdigest()}
            if path.suffix in (".safetensors", ".bin"):
                told["lfs"] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": told["size"], "pointerSize": 130}
            siblings.append(told)
        return {"id": "someone/something", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "downloads": 0}


def handler(hub):
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def refuse(self, status, code, words):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", words)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            faults = {"gated": (403, "GatedRepo", "Access is restricted"), "repo": (404, "RepoNotFound", "not found"),
                      "revision": (404, "RevisionNotFound", "Invalid rev id")}
            if hub.fault in faults:
                return self.refuse(*faults[hub.fault])
            if path.startswith("/api/"):
                return self.send(json.dumps(hub.info(path)).encode(), {"Content-Type": "application/json"}, body)
            file = hub.files(path).get(path.partition("/resolve/")[2].partition("/")[2])
            if file is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            data = file.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            self.send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data)),
                             "X-Linked-Etag": f'"{etag}"', "Accept-Ranges": "bytes"}, body, large=file.suffix == ".safetensors")

        def send(self, data, headers, body, large=False):
            begin = self.headers.get("Range")
            first = int(begin.removeprefix("bytes=").partition("-")[0]) if begin else 0
            self.send_response(206 if begin else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            if begin:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            if not body:
                return
            if large and hub.fault.startswith("cut"):
                hub.fault = hub.fault.removeprefix("cut once") and "cut"
                self.wfile.write(data[first:len(data) // 2])
                self.close_connection = True
                return
            if large and hub.fault == "stall":
                self.wfile.write(data[first:len(data) // 2])
                self.wfile.flush()
                hub.stalled.set()
                hub.over.wait()
                self.close_connection = True
                return
            self.wfile.write(data[first:])

    return Answer


@contextmanager
def serving(folder, **others):
    """(Hub, its address). others: folders of single repositories, by the last part of their names, "_" for "-"."""
    hub = Hub(folder, {name.replace("_", "-"): folder for name, folder in others.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
