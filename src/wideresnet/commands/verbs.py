"""What all verbs share: parsers, output, the names of new folders."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any, NoReturn

from wideresnet.base.errors import UsageError
from wideresnet.spec.files import reserve_folder
from wideresnet.spec.recipe import CHOICES


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Report what is wrong and exit with code 2."""
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_verb(verbs: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    """Add a verb, its example and `--json`."""
    parser = verbs.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(verb=run)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on stdout; everything else goes to stderr"
    )
    return parser


def add_machine_flags(parser: argparse.ArgumentParser, *, precision: bool = True) -> None:
    """Add `--device` and `--precision`."""
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="where to run (auto)")
    if precision:
        parser.add_argument("--precision", choices=CHOICES["precision"], default="auto", help="arithmetic (auto)")


def typed(args: argparse.Namespace) -> str:
    """Return the command line that these arguments were read from."""
    return shlex.join(["wrn", *map(str, args.argv)])


def show(args: argparse.Namespace, document: Any, render: Any) -> None:
    """The document on stdout: as JSON, or as a terminal shows it."""
    if args.json:
        print(json.dumps(document))
        return
    from rich.console import Console

    Console().print(render(document))


def new_run_folder(*about: str) -> Path:
    """Make a new folder named after what it is about and the time."""
    name = "-".join((*about, time.strftime("%Y%m%d-%H%M%S")))
    runs = Path(os.path.expanduser(os.environ.get("WRN_RUNS") or "runs"))
    return reserve_folder(runs / "".join(c if c.isalnum() or c in "-._" else "_" for c in name))
