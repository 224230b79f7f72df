"""The processes that `wrn bench start` times, children as `base.child` describes.

Each says how its first training step runs and, as soon as the step has ended, that it has. PyTorch and this package's
other rooms are imported inside the functions, because their imports are part of what is timed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from wideresnet.base.child import Parent
from wideresnet.base.errors import WRNError


def ours(given: dict[str, Any], parent: Parent) -> None:
    """Do what `wrn train` does up to the end of its first step, except for its table.

    Args:
        given: has the recipe and the run folder, `out`.
        parent: gets the answers.
    """
    from wideresnet.kernels.library import start_build, why_unavailable

    start_build()
    from wideresnet.spec.recipe import Recipe
    from wideresnet.training import Job, fit

    def announce(job: Job, _: object) -> None:
        parent.say(configuration=job.execution.describe())

    def leave(*_: object) -> None:
        parent.say(stepped=True)
        why_unavailable()  # waits for a compiler that is still at work, as the end of a run does
        os._exit(0)  # the rest of the run is not needed

    fit(Recipe.from_json(given["recipe"]), given["out"], announce=announce, watch=leave)


def plain(given: dict[str, Any], parent: Parent) -> None:
    """Do the same step in a plain PyTorch loop: eager, fp32, NCHW, on images that are already in memory.

    Args:
        given: has the recipe, device, number of threads, number of classes and size of the images.
        parent: gets the answers.
    """
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
    parent.say(stepped=True)
    parent.say(configuration=f"NCHW, eager, fp32, {torch.get_num_threads()} threads")


def main() -> None:
    """Take the step that the parent wants."""
    parent = Parent()
    given = parent.document
    if given is None:
        return
    try:
        (plain if given["way"] == "plain" else ours)(given, parent)
    except WRNError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
