"""The command `wrn`: one file a verb. PyTorch is imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from wideresnet.base.errors import WRNError
from wideresnet.commands import bench, cache, evaluate, info, predict, report, train
from wideresnet.commands.verbs import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show must not end the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        argv = sys.argv[1:] if argv is None else argv
        args = make_parser().parse_args(argv, argparse.Namespace(argv=argv))
        args.verb(args)
        sys.stdout.flush()
        return 0
    except WRNError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        _leave_stdout()
        if isinstance(error, BrokenPipeError):  # the reader has gone, as in `wrn ... | head`
            return 0
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail("out of memory; use a smaller --batch-size, --image-size or --limit", 1)


def _fail(message: object, code: int) -> int:
    """Say what went wrong in one line, whatever a path or a library's message holds."""
    print("wrn:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _leave_stdout() -> None:
    """Where stdout cannot be written any more, see to it that what is in its buffer does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, PyTorch's CPU allocator or a GPU has no memory left; without importing PyTorch for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(
        prog="wrn",
        description="Wide Residual Networks: every network of the paper, trained to the paper's number.",
        epilog="wrn VERB --help explains a verb and shows an example.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (train, evaluate, predict, info, report, bench, cache):
        verb.add(verbs)
    return parser
