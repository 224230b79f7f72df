"""A verb that trains in several processes."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wideresnet.distributed.world import World


def in_processes(args: Namespace, train: Callable[[World, Namespace], None]) -> None:
    """Train in as many processes as `--processes` asks for: start them, or be one of them.

    Args:
        args: of the command line.
        train: called in each process with those that have joined, and the arguments.
    """
    if args.processes is not None:
        from wideresnet.distributed.launch import is_launched, launch

        if not is_launched(args.processes):
            if code := launch(args.processes, args.argv):
                sys.exit(code)
            return
    from wideresnet.distributed.world import join

    with join() as world:
        train(world, args)
