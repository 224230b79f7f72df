"""The command `wrn`: one file per verb. PyTorch is imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence

from wideresnet import __version__
from wideresnet.base.errors import WRNError
from wideresnet.commands import bench, cache, evaluate, info, predict, report, train
from wideresnet.commands.console import show_progress
from wideresnet.commands.translate import translator
from wideresnet.commands.verbs import Parser
from wideresnet.machine.cpu import export_thread_limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show must not end the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = argparse.Namespace(argv=sys.argv[1:] if argv is None else argv)
    try:
        parser = make_parser()
        if not args.argv:
            parser.print_help()
            return 0
        parser.parse_args(args.argv, args)
        show_progress(translator(args))
        if argv is None:  # this process is the command: no library has started its threads yet
            export_thread_limit()
        args.verb(args)
        sys.stdout.flush()
        return 0
    except WRNError as error:
        return _fail(_for_people(str(error), args), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        _leave_stdout()
        if isinstance(error, BrokenPipeError):  # nobody reads anymore, as in `wrn ... | head`
            return 0
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail("out of memory; use a smaller --batch-size, --image-size or --limit", 1)


def _for_people(message: str, args: argparse.Namespace) -> str:
    """Put the library's arguments in the words of the command line."""
    message = translator(args)(message)
    if command := getattr(args, "resume_command", None):
        message = re.sub(r"(continue[^;]*) with --resume\b", lambda match: f"{match[1]} with: {command}", message)
    return message


def _fail(message: object, code: int) -> int:
    """Report what went wrong in one line, whatever a path or a library's message holds."""
    print("wrn:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _leave_stdout() -> None:
    """If stdout cannot be written anymore, keep its buffer from failing again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether Python, PyTorch's CPU allocator or a GPU is out of memory, without importing PyTorch for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="wrn",
        description="Wide Residual Networks: every network of the paper, trained to the paper's number.",
        epilog="wrn VERB --help explains a verb and shows an example.",
    )
    parser.add_argument("--version", action="version", version=f"wrn {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (train, evaluate, predict, info, report, bench, cache):
        verb.add(verbs)
    return parser
