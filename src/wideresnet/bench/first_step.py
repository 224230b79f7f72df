"""The processes that `wrn bench start` times. All imports are inside the functions: they are part of what is timed.

Each reads what to do from standard input, and says there when its first training step begins and has ended.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def ours(given: dict[str, Any]) -> None:
    """`wrn train` up to the end of its first step; `given` has recipe, num_threads and the run folder."""
    from wideresnet.kernels.library import start_build

    start_build()
    import torch

    from wideresnet.config import Recipe
    from wideresnet.training import fit

    def leave(*_: object) -> None:
        _say("stepped")
        os._exit(0)  # what follows is not timed

    torch.set_num_threads(given["num_threads"])
    fit(Recipe.from_json(given["recipe"]), given["out"], announce=lambda *_: _say("ready"), watch=leave)


def plain(given: dict[str, Any]) -> None:
    """The same step by a plain loop of PyTorch: eager, fp32, NCHW, on images that are there already."""
    import torch
    import torch.nn.functional as F

    from wideresnet.networks import create

    torch.set_num_threads(given["num_threads"])
    recipe, device = given["recipe"], given["device"]
    network = create(recipe["network"], given["num_classes"], family=recipe["family"]).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe["lr"], momentum=recipe["momentum"], weight_decay=recipe["weight_decay"],
        nesterov=recipe["nesterov"],
    )  # fmt: skip
    size = recipe["batch_size"], 3, given["size_px"], given["size_px"]
    images, labels = torch.randn(*size, device=device), torch.zeros(size[0], dtype=torch.int64, device=device)
    _say("ready")
    network.kernels = False
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    _say("stepped")


def _say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    {"ours": ours, "plain": plain}[sys.argv[1]](json.loads(sys.stdin.read()))
