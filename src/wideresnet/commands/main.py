"""The command `wrn`: one file per verb. PyTorch is imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Sequence

from wideresnet import __version__
from wideresnet.base.errors import WRNError
from wideresnet.base.format import printable
from wideresnet.base.streams import keep_display_alive, open_missing_streams, silence
from wideresnet.commands import bench, cache, evaluate, info, predict, report, train
from wideresnet.commands.console import show_progress
from wideresnet.commands.translate import translator
from wideresnet.commands.verbs import Parser
from wideresnet.machine.cpu import export_thread_limit

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as in shells."""

OUT_OF_MEMORY = (
    "allocate memory",  # PyTorch's allocator
    "could not create a primitive",  # oneDNN, which says no more than that
    "can't start new thread",  # no room for its stack
    "failed to map segment",  # the dynamic loader, in an ImportError
)
"""What messages of libraries hold if memory is out. They have no exception of their own for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words after `wrn`; None for those of this process, which is then the command and nothing else.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C.
    """
    if argv is not None:
        return _run(argv)
    open_missing_streams()
    keep_display_alive()
    export_thread_limit()  # no library has started its threads yet
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:  # another Ctrl-C, while the first was reported
        code = INTERRUPTED
    signal.signal(signal.SIGINT, lambda *_: os._exit(code))  # libraries clean up at exit, and would print a traceback
    return code


def _run(argv: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show must not end the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = argparse.Namespace(argv=argv)
    try:
        parser = make_parser()
        if not argv:
            parser.print_help()
            return _flushed(0)
        parser.parse_args(argv, args)
        show_progress(translator(args))
        args.verb(args)
        return _flushed(0)
    except SystemExit as leaving:  # argparse, after --help or a mistake; the launcher of several processes
        return _flushed(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
    except WRNError as error:
        return _flushed(_fail(_for_people(str(error), args), error.exit_code))
    except KeyboardInterrupt:
        return _flushed(_fail("interrupted", INTERRUPTED))
    except BrokenPipeError:  # nobody reads the result anymore, as in `wrn ... | head`
        return _flushed(0)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if _is_out_of_memory(error):
            return _flushed(_fail("out of memory; use a smaller --batch-size, --image-size or --limit", 1))
        if isinstance(error, OSError):
            return _flushed(_fail(_os_text(error), 1))
        raise


def _for_people(message: str, args: argparse.Namespace) -> str:
    """Put the library's arguments in the words of the command line."""
    message = translator(args)(message)
    if command := getattr(args, "resume_command", None):
        message = re.sub(r"(continue[^;]*) with --resume\b", lambda match: f"{match[1]} with: {command}", message)
    return message


def _fail(message: str, code: int) -> int:
    """Report what went wrong in one line, whatever a path or a library's message holds."""
    print("wrn:", printable(" ".join(message.split())), file=sys.stderr)
    return code


def _flushed(code: int) -> int:
    """Empty the buffer of stdout, so that a failure is reported, once, and not at the interpreter's exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout.fileno())
    except OSError as error:
        silence(sys.stdout.fileno())
        return code or _fail(f"standard output: {error.strerror}", 1)
    return code


def _os_text(error: OSError) -> str:
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if isinstance(error.filename, str | bytes) else str(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether Python, a library or a GPU is out of memory, without importing PyTorch for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        bool(names & {"MemoryError", "OutOfMemoryError"})
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in OUT_OF_MEMORY)
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="wrn",
        description="Wide Residual Networks: every network of the paper, with the paper's recipe and shorter ones.",
        epilog="wrn VERB --help explains a verb and shows an example.",
    )
    parser.add_argument("--version", action="version", version=f"wrn {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (train, evaluate, predict, info, report, bench, cache):
        verb.add(verbs)
    return parser
