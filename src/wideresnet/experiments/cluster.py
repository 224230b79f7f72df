"""Runs on the nodes of a Ray cluster: what each one gets, how many there are at once, and what its node must see.

Ray decides where and when a run starts. Whether it is started again, and from where, is decided by `train_all` as for
local runs, so Ray's own retries are off.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import counted
from wideresnet.base.remote import VARIABLES, Host, RemoteChild
from wideresnet.base.version import __version__
from wideresnet.experiments.plan import NUMERICS
from wideresnet.experiments.process import Worker

INSTALL = "pip install 'wideresnet[ray]'"

SEEN_S = 10.0
"""A new file on shared storage must be seen by all nodes within this time: some keep what they know of a folder for
seconds. This package's choice."""

ANSWER_S = 120.0
"""A node that has not imported this package after this time does not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What each run gets of its node.

    Attributes:
        cpus: CPUs, and threads of the run.
        gpus: GPUs; below 1, several runs share one.
    """

    cpus: int
    gpus: float

    def room(self, node: Mapping[str, float]) -> int:
        """Return how many runs a node has room for, given its resources by Ray's names."""
        room = int(node.get("CPU", 0)) // self.cpus
        if self.gpus == 0:
            return room
        gpus = int(node.get("GPU", 0))
        by_gpu = gpus // math.ceil(self.gpus) if self.gpus >= 1 else gpus * int(1 / self.gpus + 1e-9)
        return min(room, by_gpu)


def share_of(nodes: Sequence[Mapping[str, float]], cpus_each: int | None, gpus_each: float | None) -> Share:
    """Decide what each run gets.

    Args:
        nodes: the resources of each node, by Ray's names.
        cpus_each: CPUs of a run; None for one, or on GPUs for its part of the node's.
        gpus_each: GPUs of a run; None for one if there are any.

    Raises:
        UsageError: no node has as much.
    """
    if cpus_each is not None and cpus_each < 1:
        raise UsageError(f"cpus_each={cpus_each}: must be at least 1")
    if gpus_each is not None and not (0 <= gpus_each <= 1 or gpus_each == int(gpus_each) > 1):
        raise UsageError(f"gpus_each={gpus_each}: must be a share of a GPU from 0 to 1, or a whole number")
    with_gpus = [node for node in nodes if node.get("GPU")]
    gpus = gpus_each if gpus_each is not None else float(bool(with_gpus))
    if cpus_each is None:
        parts = [node.get("CPU", 0) / node["GPU"] for node in with_gpus] if gpus else []
        cpus_each = max(1, int(gpus * min(parts, default=1)))
    share = Share(cpus_each, gpus)
    if not any(map(share.room, nodes)):
        largest = max(nodes, key=lambda node: (bool(gpus) and node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise UsageError(
            f"cpus_each={share.cpus} and gpus_each={share.gpus:g}: no node of the cluster has as much; the largest has "
            f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs"
        )
    return share


class Cluster:
    """The nodes that Ray has, for the time of a `connect`.

    Attributes:
        share: what each run gets.
        text: how many nodes there are, and for how many runs.
    """

    def __init__(self, share: Share, text: str, marker: Path, stack: ExitStack) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self.share, self.text = share, text
        self._marker, self._stack, self._is_quiet = marker, stack, False
        hidden = {} if share.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # Ray hides the GPUs of others only
        self._host = ray.remote(Host).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            runtime_env={"env_vars": {**VARIABLES, **hidden}},
        )

    def start(self, seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Worker:
        """Start the process of a run on some node; arguments as for `Worker`."""
        if not self._is_quiet:  # from here on Ray reports lost nodes by printing, and standard output is for the result
            file = self._stack.enter_context((self._marker.parent / "ray.log").open("a", encoding="utf-8"))
            self._stack.enter_context(redirect_stdout(file))
            self._is_quiet = True
        # a run on a node that seems lost may go on for a while, so its successor waits for this lease
        job = {**job, "out": str(Path(job["out"]).absolute()), "lease": str(log.with_suffix(".worker.lock").absolute())}

        def start_child(module: str, document: Any, *, log: Path, **_: Any) -> RemoteChild:
            return RemoteChild(self._host.remote(), module, document, log=log.absolute(), marker=self._marker)

        return Worker(seed, job, log, num_threads, start_child=start_child)


@contextmanager
def connect(
    folder: Path, *, paths: Sequence[Path] = (), cpus_each: int | None = None, gpus_each: float | None = None
) -> Iterator[Cluster]:
    """Reach the cluster that RAY_ADDRESS or a node of it on this machine names, else start one of this machine alone.

    Args:
        folder: of the runs, on storage that all nodes share under this path.
        paths: of data, which all nodes must see, too.
        cpus_each, gpus_each: as for `share_of`.

    Raises:
        UsageError: Ray is not installed, cannot be reached, has no such node, or a node is not ready for runs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers unless somebody wants
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(f"on='ray': Ray is not installed; {INSTALL}") from None
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise UsageError(f"on='ray': RAY_ADDRESS is {address}, a Ray client's; run this on a node of the cluster")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"on='ray': {' '.join(str(error).split())}") from None
        stack.callback(ray.shutdown)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        share = share_of([node["Resources"] for node in nodes], cpus_each, gpus_each)
        used = {node["NodeID"]: node for node in nodes if share.room(node["Resources"])}
        marker = Path(stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".cluster-")).name)
        _check_nodes(used, marker, paths)
        room = sum(share.room(node["Resources"]) for node in used.values())
        text = (
            f"Ray has room for {counted(room, 'run')} at once on {counted(len(used), 'node')}; CPUs each: {share.cpus}"
        )
        text += f", GPUs each: {share.gpus:g}" if share.gpus else ""
        yield Cluster(share, text, marker, stack)


def _check_nodes(nodes: Mapping[str, Mapping[str, Any]], marker: Path, paths: Sequence[Path]) -> None:
    """Refuse nodes on which a run would be trained in vain or by another version, before anything is started."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import GetTimeoutError, RayError  # pyright: ignore[reportMissingImports]
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

    look = ray.remote(look_around)
    asked = {
        node: look.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(marker, [Path(path).absolute() for path in paths])
        for node in nodes
    }
    here = _versions()
    for node, answer in asked.items():
        name = f"{nodes[node]['NodeManagerHostname']} ({nodes[node]['NodeManagerAddress']})"
        try:
            problem, there = ray.get(answer, timeout=ANSWER_S)
        except GetTimeoutError:
            raise WRNError(f"on='ray': node {name} does not answer within {ANSWER_S:.0f} s") from None
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WRNError(f"on='ray': node {name} cannot run this package ({reason}); install it there") from None
        if problem:
            raise UsageError(f"on='ray': node {name} {problem}")
        if there["wideresnet"] != here["wideresnet"]:
            raise UsageError(f"on='ray': node {name} has wideresnet {there['wideresnet']}, here is "
                             f"{here['wideresnet']}; install the same version")  # fmt: skip
        if there != here:
            log.warning(
                f"node {name} has PyTorch {there['torch']}, here is {here['torch']}: results differ in rounding"
            )


def look_around(marker: Path, paths: Sequence[Path]) -> tuple[str, dict[str, str]]:
    """Look, on a node, for what runs need.

    Args:
        marker: a file that the driver has just written to the folder of the runs.
        paths: of data.

    Returns:
        What is wrong, "" if nothing is; the versions that decide results.
    """
    until = time.monotonic() + SEEN_S
    while not marker.is_file() and time.monotonic() < until:
        time.sleep(0.5)
        with suppress(OSError):
            next(marker.parent.iterdir(), None)  # asks the server anew
    if not marker.is_file():
        return f"does not see out={marker.parent}; it must be on storage that all nodes share, under this path", {}
    try:
        with tempfile.TemporaryFile(dir=marker.parent):
            pass
    except OSError as error:
        return f"cannot write to out={marker.parent}: {error.strerror}", {}
    if missing := [str(path) for path in paths if not path.exists()]:
        return f"does not see data={missing[0]}; put it on storage that all nodes share, under this path", {}
    return "", _versions()


def _versions() -> dict[str, str]:
    return {"wideresnet": f"{__version__} (numerics {NUMERICS})", "torch": torch.__version__}
