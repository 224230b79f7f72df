"""The command `wrn`: one file per verb. PyTorch is imported inside the verbs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import atexit
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
from wideresnet.commands import (
    analyze,
    bench,
    cache,
    check,
    detect,
    evaluate,
    export,
    info,
    paper,
    predict,
    report,
    reproduce,
    train,
)
from wideresnet.commands.console import show_progress
from wideresnet.commands.translate import translator
from wideresnet.commands.verbs import Parser
from wideresnet.machine.cpu import export_short_spinning, export_thread_limit
from wideresnet.spec.files import release_folders

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
    if argv is None:
        open_missing_streams()
        keep_display_alive()
        export_thread_limit()  # no library has started its threads yet
        export_short_spinning()
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show must not end the program
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code, message = _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted"
    if argv is None:  # libraries clean up at exit, and would answer another Ctrl-C with a traceback
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if message:
        _complain(message)
    try:  # now, so that a failure is reported, once, and not at the interpreter's exit
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout.fileno())
        if not (code or isinstance(error, BrokenPipeError)):
            code = 1
            _complain(_os_text(OSError(error.errno, error.strerror, "standard output")))
    if argv is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # the communication library's cleanup at exit was seen to abort a process whose work was done
        atexit._run_exitfuncs()
        os._exit(code)
    return code


def _run(argv: Sequence[str]) -> tuple[int, str]:
    """Run a command line; return the exit code and what to say of a failure."""
    args = argparse.Namespace(argv=argv)
    try:
        parser = make_parser()
        if argv:
            parser.parse_args(argv, args)
            show_progress(translator(args))
            args.verb(args)
        else:
            parser.print_help()
    except SystemExit as leaving:  # argparse, after --help or a mistake; the launcher of several processes
        return (leaving.code if isinstance(leaving.code, int) else 0), ""
    except WRNError as error:
        return error.exit_code, _for_people(str(error), args)
    except BrokenPipeError:  # nobody reads the result anymore, as in `wrn ... | head`
        return 0, ""
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if _is_out_of_memory(error):
            return 1, "out of memory; use a smaller --batch-size, --image-size or --limit"
        if isinstance(error, OSError):
            return 1, _os_text(error)
        raise
    finally:
        release_folders()
    return 0, ""


def _for_people(message: str, args: argparse.Namespace) -> str:
    """Put the library's arguments in the words of the command line."""
    message = translator(args)(message)
    if command := getattr(args, "resume_command", None):
        message = re.sub(r"(continue[^;]*) with --resume\b", lambda match: f"{match[1]} with: {command}", message)
    return message


def _complain(message: str) -> None:
    """Report what went wrong in one line, whatever a path or a library's message holds."""
    print("wrn:", printable(" ".join(message.split())), file=sys.stderr)


def _os_text(error: OSError) -> str:
    """Say what the system said, and of a full disk what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{place}no space left on the disk; free some space and start the command again"
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
    for verb in (
        check,
        train,
        evaluate,
        predict,
        detect,
        export,
        analyze,
        info,
        paper,
        reproduce,
        report,
        bench,
        cache,
    ):
        verb.add(verbs)
    return parser
