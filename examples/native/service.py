"""An HTTP service that classifies images, with nothing but Python's library, NumPy and separable_runtime.

POST /classify with the bytes of a uint8 image (H, W, C) of the network's size returns the likeliest class as JSON.

    python service.py net.tsn --port 8000 --workers 4

Each worker is a process that accepts connections and runs on one thread. All of them map the same file, so that the
weights are in memory once. A request is a batch of its own; a service that wants larger batches collects them here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from separable_runtime import Network, NetworkError


def answer(network: Network, body: bytes) -> dict[str, Any]:
    """Classify one image."""
    channels, height, width = network.input.shape
    if len(body) != height * width * channels:
        raise NetworkError(f"expected {height * width * channels} bytes, uint8 ({height}, {width}, {channels})", 5)
    image = np.frombuffer(body, np.uint8).reshape(height, width, channels)
    scores = np.asarray(network(network.prepare(image)))[0]
    best = int(scores.argmax())
    return {"class": best, "name": network.classes[best] if network.classes else None, "score": float(scores[best])}


def handler(network: Network) -> type[BaseHTTPRequestHandler]:
    """Return the class that handles requests by this network."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/classify" or length > 64 << 20:
                self.send_error(404)
                return
            try:
                status, found = 200, answer(network, self.rfile.read(length))
            except NetworkError as error:
                status, found = 400, {"error": str(error)}
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing for each request."""

    return Handler


def serve(path: str, listener: socket.socket) -> None:
    """Handle connections until the process is ended."""
    server = ThreadingHTTPServer(listener.getsockname(), handler(Network(path, threads=1)), bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def main() -> None:
    """Start the workers, and end them with this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    Network(given.network, threads=1).close()  # a bad file ends the service here, with one message
    listener = socket.create_server((given.host, given.port), backlog=128)
    workers: list[int] = []
    for _ in range(given.workers):
        worker = os.fork()
        if not worker:
            serve(given.network, listener)
        workers.append(worker)
    print(f"http://{given.host}:{listener.getsockname()[1]}/classify, {given.workers} workers", flush=True)

    def stop(*_: Any) -> None:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    os.wait()
    stop()


if __name__ == "__main__":
    main()
