"""Child processes on the nodes of a Ray cluster, with the interface of `child.Child`.

On its node, an actor starts the child and passes its answers on. The child's input ends with the actor, and the actor
with the parent and with Ray on that node, so a remote child stops by itself just as a local one does.

Ray is an optional dependency: this module is imported without it, and used by `experiments.cluster` only.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wideresnet.base.child import Child

LOST = -9  # SIGKILL, which Windows has no name for
"""Exit code of a child whose actor or node has died: as after a kill, the same work may be started again."""

STOPPED = 128 + signal.SIGINT
"""Exit code of a child that was stopped before it had begun."""

VARIABLES = {"RAY_kill_child_processes_on_worker_exit": "false"}
"""Environment of the actor: by default Ray kills the children of an actor that ends, before they can save anything.
Source: src/ray/common/ray_config_def.h."""

LOOK_S = 1.0
"""How often an actor looks whether Ray is still there."""

_EXIT_CODE = "exit code"


class Host:
    """The actor on the node. It needs two threads, so that it can be told to stop while it listens to the child."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._is_stopped = False

    def run(self, module: str, document: Any, log: Path, marker: Path) -> Iterator[dict[str, Any]]:
        """Run a child, and yield an empty answer when it has started, its answers, and its exit code.

        Args:
            module, document, log: as for `Child`.
            marker: a file that this node must see, in the folder of the log.
        """
        if not marker.is_file():
            yield {"message": f"node {socket.gethostname()} does not see {marker.parent}, which all nodes must share"}
            yield {_EXIT_CODE: 2}
            return
        with log.open("a") as file:
            file.write(f"on node {socket.gethostname()}, pid {os.getpid()}\n")
        child = self._child = Child(module, document, log=log, own_session=True)
        threading.Thread(target=self._end_with, args=(os.getppid(), child), daemon=True).start()
        try:
            if self._is_stopped:
                child.stop()
            yield {}
            yield from child
            yield {_EXIT_CODE: child.wait()}
        finally:
            child.close()

    def stop(self) -> None:
        """Ask the child to stop."""
        self._is_stopped = True
        if self._child is not None:
            self._child.stop()

    def _end_with(self, raylet: int, child: Child) -> None:
        """Stop the child and end when the process of Ray that has started this one is dead.

        Ray 2.60 was seen to leave an actor at work whose node it had given up a minute ago.
        """
        while os.getppid() == raylet:
            time.sleep(LOOK_S)
        child.stop()
        child.wait()
        os._exit(1)


class RemoteChild:
    """A child process on some node of a cluster, which waits for its turn there."""

    began = "queued on the cluster"

    def __init__(self, host: Any, module: str, document: Any, *, log: Path, marker: Path) -> None:
        """Start `python -m module` where the actor is.

        Args:
            host: handle of an actor of class `Host`, for this child alone.
            module, document, log, marker: as for `Host.run`; the paths are absolute.
        """
        self._host = host
        self._has_begun = self._is_stopped = False
        self._code: int | None = None
        self._answers = host.run.options(num_returns="streaming").remote(module, document, log, marker)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the child's answers as they come, then what went wrong on the way, until its exit code is known."""
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]

        code = LOST
        try:
            for reference in self._answers:
                answer: Any = ray.get(reference)
                self._has_begun = True
                code = answer.pop(_EXIT_CODE, code)
                if answer:
                    yield answer
        except RayTaskError as error:  # on its node, before or after the child
            code = 1
            yield {"message": f"{type(error.cause).__name__}: {error.cause}"}
        except RayError as error:
            if self._is_stopped and not self._has_begun:
                code = STOPPED
            else:
                yield {"message": f"lost with its node or its actor there ({type(error).__name__})"}
        finally:
            self._code = code

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal or with a lost node; None while the child waits or runs."""
        return self._code

    def stop(self) -> None:
        """Ask the child to stop; one that has not begun never will."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._has_begun:
            self._host.stop.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """Let go of the child at once, and do not wait until it has ended: it finds its input closed and stops."""
        import ray  # pyright: ignore[reportMissingImports]

        ray.kill(self._host)

    def close(self) -> None:
        """Free what the child has taken of its node."""
        self.kill()
