"""Load the service and print throughput and latencies.

python load.py http://127.0.0.1:8000/classify --shape 224,224,3 --seconds 60 --connections 8
"""

from __future__ import annotations

import argparse
import http.client
import random
import statistics
import threading
import time
from urllib.parse import urlsplit


def work(url: str, body: bytes, until: float, times: list[float]) -> None:
    """Send requests over one connection until a time; append the seconds of each."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=10)
    while time.perf_counter() < until:
        start = time.perf_counter()
        connection.request("POST", place.path, body)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"the service answers {response.status}")
        times.append(time.perf_counter() - start)
    connection.close()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--shape", default="224,224,3", help="of an image: height, width, channels")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=8)
    given = parser.parse_args()
    height, width, channels = map(int, given.shape.split(","))
    body = random.Random(0).randbytes(height * width * channels)
    times: list[list[float]] = [[] for _ in range(given.connections)]
    until = time.perf_counter() + given.seconds
    threads = [threading.Thread(target=work, args=(given.url, body, until, own)) for own in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = sorted(1e3 * each for own in times for each in own)
    p99 = seconds[int(0.99 * (len(seconds) - 1))]
    print(
        f"{len(seconds) / given.seconds:.0f} requests a second; milliseconds: median {statistics.median(seconds):.1f}, "
        f"99th percentile {p99:.1f}"
    )


if __name__ == "__main__":
    main()
