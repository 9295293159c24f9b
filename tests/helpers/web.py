# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A web server of a folder whose answers can fail, and processes that read from it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest import mock

import numpy as np

from torchgeo_sigmae.datasets import PackedChips, remote
from torchgeo_sigmae.datasets.remote import RemotePack


class Server(ThreadingHTTPServer):
    """Answers with the files of a folder.

    Attributes:
        url: Where they are.
        requests: Names of the files that were asked for.
        cut: So many shards are sent by half, before the connection is closed.
        damaged: So many shards are sent with another byte.
        stalled: Set when half a shard was sent and nothing follows; None to send all.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        handler = partial(_Handler, directory=str(folder))
        super().__init__(('127.0.0.1', 0), handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.requests: list[str] = []
        self.cut = self.damaged = 0
        self.stalled: Event | None = None


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rpartition('/')[2]
        self.server.requests.append(name)
        path = Path(self.translate_path(self.path))
        if not name.startswith('shard') or not path.is_file():
            super().do_GET()
            return
        content = bytearray(path.read_bytes())
        length = len(content)
        if self.server.damaged:
            self.server.damaged -= 1
            content[-1] ^= 1
        if self.server.cut:
            self.server.cut -= 1
            del content[length // 2 :]
        self.send_response(200)
        self.send_header('Content-Length', str(length))
        self.end_headers()
        if self.server.stalled is not None:
            self.wfile.write(content[: length // 2])
            self.wfile.flush()
            self.server.stalled.set()
            Event().wait(60)
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder; trials follow each other at once."""
    server = Server(folder)
    Thread(target=server.serve_forever, daemon=True).start()
    with mock.patch.object(remote, '_WAITS', (0.0, 0.0, 0.0)):
        yield server
    server.shutdown()
    server.server_close()


def read_all(
    jobs: Sequence[tuple[str, Path, float | None]], seed: int, file: Path
) -> None:
    """Read every 16th chip of packs in a random order, and write their sums."""
    sums = []
    for url, cache, size in jobs:
        chips = PackedChips(url, remote=RemotePack(url, cache, size))
        sums.append(np.zeros(len(chips) // 16))
        for index in np.random.default_rng(seed).permutation(len(sums[-1])).tolist():
            sums[-1][index] = chips[16 * index]['image'].double().sum()
    np.save(file, sums)
