# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A Hugging Face Hub on this machine: what uploading and downloading a model need."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

#: The one commit of every repository.
COMMIT = 'c0ffee' + '0' * 34


class Hub(ThreadingHTTPServer):
    """Repositories in memory."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        #: Content by file name, of every repository.
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers['Content-Length']))
        match self.path.partition('?')[0].strip('/').split('/'):
            case ['api', 'repos', 'create']:
                asked = json.loads(raw)
                name = f'{asked["organization"]}/{asked["name"]}'
                self.server.repositories.setdefault(name, {})
                if asked.get('private') or asked.get('visibility') == 'private':
                    self.server.private.add(name)
                self.answer({'url': f'{self.server.url}/{name}', 'name': name})
            case ['api', 'validate-yaml']:
                self.answer({'errors': [], 'warnings': []})
            case ['api', 'models', owner, name, 'preupload', 'main']:
                modes = [
                    {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                    for f in json.loads(raw)['files']
                ]
                self.answer({'files': modes})
            case ['api', 'models', owner, name, 'commit', 'main']:
                for line in map(json.loads, raw.splitlines()):
                    if line['key'] == 'file':
                        content = base64.b64decode(line['value']['content'])
                        files = self.server.repositories[f'{owner}/{name}']
                        files[line['value']['path']] = content
                url = f'{self.server.url}/{owner}/{name}/commit/{COMMIT}'
                self.answer({'commitUrl': url, 'commitOid': COMMIT, 'success': True})
            case _:
                self.missing('EntryNotFound')

    def do_GET(self) -> None:
        path = self.path.partition('?')[0].strip('/').removeprefix('api/models/')
        owner, name, *rest = path.split('/')
        files = self.server.repositories.get(f'{owner}/{name}')
        if files is None:
            self.missing('RepoNotFound')
            return
        match rest:
            case [] | ['revision', _]:
                names = [{'rfilename': name} for name in files]
                self.answer({'id': f'{owner}/{name}', 'sha': COMMIT, 'siblings': names})
            case ['tree', *_]:
                self.answer([
                    {'type': 'file', 'path': name, 'size': len(content), 'oid': name}
                    for name, content in files.items()
                ])  # fmt: skip
            case ['resolve', _, *parts] if '/'.join(parts) in files:
                self.answer(files['/'.join(parts)])
            case _:
                self.missing('EntryNotFound')

    do_HEAD = do_GET

    def answer(self, content: object, status: int = 200, error: str = '') -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('ETag', f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header('X-Repo-Commit', COMMIT)
        if not isinstance(content, bytes):
            self.send_header('Content-Type', 'application/json')
        if error:
            self.send_header('X-Error-Code', error)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def missing(self, error: str) -> None:
        self.answer({'error': error}, 404, error)


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A Hub that answers until the context ends."""
    with Hub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
