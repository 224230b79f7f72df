"""The processes that `wrn bench start` times. All imports are inside the functions: they are part of what is timed.

Each reads what to do from standard input. On standard output it says, a JSON object a line, how its first training step
runs and, at once when that has ended, that it has.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from wideresnet.base.errors import WRNError


def ours(given: dict[str, Any]) -> None:
    """`wrn train` up to the end of its first step, but for its table; `given` has the recipe and the run folder."""
    from wideresnet.kernels.library import start_build, why_unavailable

    start_build()
    from wideresnet.spec.recipe import Recipe
    from wideresnet.training import Job, fit
    from wideresnet.training.preflight.autotune import describe_configuration

    def announce(job: Job, _: object) -> None:
        _say(configuration=describe_configuration(job.recipe))

    def leave(*_: object) -> None:
        _say(stepped=True)
        why_unavailable()  # a compiler that is still at work is waited for, as at the end of a run
        os._exit(0)  # the rest of the run is not wanted

    fit(Recipe.from_json(given["recipe"]), given["out"], announce=announce, watch=leave)


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
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    _say(stepped=True)
    _say(configuration=f"NCHW, eager, fp32, {torch.get_num_threads()} threads")


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    try:
        {"ours": ours, "plain": plain}[sys.argv[1]](json.loads(sys.stdin.read()))
    except WRNError as error:
        sys.exit(" ".join(str(error).split()))
