"""Print the five likeliest classes of a photograph, without PyTorch.

python classify.py net.tsn photograph.npy        uint8 (H, W, 3), of the network's size
"""

from __future__ import annotations

import sys

import numpy as np
from separable_runtime import Network


def main(path: str, photograph: str) -> None:
    """Classify one photograph."""
    network = Network(path)
    scores = np.asarray(network(network.prepare(np.load(photograph))))[0]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    for index in np.argsort(-scores, kind="stable")[:5]:
        name = network.classes[index] if network.classes else ""
        print(f"{100 * shares[index]:5.1f} %  {index} {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
