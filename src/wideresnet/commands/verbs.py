"""What all verbs share: parsers, output, the names of new folders."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wideresnet.base.errors import UsageError
from wideresnet.base.format import nearest, printable, printable_values
from wideresnet.spec.files import release_folders, reserve_folder, write_atomic
from wideresnet.spec.recipe import CHOICES, FIELDS

if TYPE_CHECKING:
    from rich.console import RenderableType


WEIGHTS = "run folder, weights folder, model.safetensors, or name of a shipped network (see wrn info --weights list)"
"""What every verb takes for trained weights."""

FORMULA_STARTS = tuple("=+-@＝＋－＠")  # the wide forms, too: some spreadsheets read them alike
"""What a spreadsheet takes for the begin of a formula."""


class Parser(ArgumentParser):
    """A parser whose errors are one line, not a page of usage, and name what was probably meant."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """Parse, and refuse what is left over here, where the flags of the verb are known."""
        namespace = Namespace() if namespace is None else namespace
        _, strangers = super().parse_known_args(args, namespace)
        if strangers := self._take_rest(strangers, namespace):
            flag = strangers[0].partition("=")[0]
            near = nearest(flag, self._option_string_actions).partition(" (")[0] if flag.startswith("-") else ""
            advice = f"; {near}" if near.startswith("did you mean") else ""
            self.error(f"unrecognized arguments: {' '.join(strangers)}{advice}")
        return namespace, []

    def _take_rest(self, words: list[str], namespace: Namespace) -> list[str]:
        """Add words behind a flag to the list of the last positional; return those that do not belong there.

        By itself, argparse takes only the first group of words that stand together.
        """
        lists = [action for action in self._get_positional_actions() if action.nargs in ("+", "*")]
        if not lists or any(word.startswith("-") for word in words):
            return words
        read: Any = lists[-1].type or str
        found = getattr(namespace, lists[-1].dest)
        setattr(namespace, lists[-1].dest, [*(found or []), *map(read, words)])
        return []

    def error(self, message: str) -> NoReturn:
        """Report what is wrong and exit with code 2."""
        if match := re.fullmatch(r"(.*): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
            choices = re.findall(r"[\w.-]+", match[3])
            message = f"{match[1]}: {match[2]!r}: {nearest(match[2], choices)}"
        message = printable(" ".join(message.split()))
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_verb(verbs: Any, name: str, run: Any, help: str, example: str) -> ArgumentParser:
    """Add a verb, its example and `--json`."""
    parser = verbs.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(verb=releasing(run))
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on stdout; everything else goes to stderr"
    )
    return parser


def releasing(run: Callable[..., None]) -> Callable[..., None]:
    """Return the verb so that it leaves no new folder behind to which it has written nothing."""

    def verb(args: Namespace, **method: Any) -> None:
        try:
            run(args, **method)
        finally:
            release_folders()

    return verb


def add_machine_flags(parser: ArgumentParser, *, precision: bool = True) -> None:
    """Add `--device` and `--precision`."""
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="where to run (auto)")
    if precision:
        parser.add_argument("--precision", choices=CHOICES["precision"], default="auto", help="arithmetic (auto)")


def add_int8_flag(parser: ArgumentParser) -> None:
    """Add `--int8`."""
    parser.add_argument(
        "--int8", action="store_true", help="run in 8 bits on a CPU, calibrated on training images: fast, not exact"
    )


def add_engine_flag(parser: ArgumentParser) -> None:
    """Add `--engine`."""
    parser.add_argument(
        "--engine", choices=("onnxruntime", "openvino"),
        help="compute on the CPU by this engine, which is to be installed: the same answers, and faster for networks "
        "that this package has no kernels for (this package's own)",
    )  # fmt: skip


def add_track_flag(parser: ArgumentParser, more: str = "") -> None:
    """Add `--track`.

    Args:
        parser: of the verb.
        more: what else the help says about it.
    """
    parser.add_argument(
        "--track", choices=("tensorboard", "trackio", "wandb"),
        help="also report epochs and result to this tracker, which is to be installed" + more,
    )  # fmt: skip


def add_reading_flags(parser: ArgumentParser, *, class_order: bool = True) -> None:
    """Add the flags that say how to read one's own data, as `wrn train` has them.

    Args:
        class_order: False if the order of the classes is given by weights.
    """
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    for key in ("image_column", "label_column"):
        parser.add_argument(f"--{key.replace('_', '-')}", metavar="NAME", help=FIELDS[key].metadata["help"])
    if class_order:
        parser.add_argument(
            "--class-order", choices=CHOICES["class_order"], help=FIELDS["class_order"].metadata["help"]
        )


def typed(args: Namespace) -> str:
    """Return the command line that these arguments were read from."""
    return shlex.join(["wrn", *map(str, args.argv)])


def say(text: str) -> None:
    """Print one line of the result on stdout."""
    with _stdout():
        print(printable(text))


def show(args: Namespace, document: Any, render: Callable[[Any], RenderableType | str]) -> None:
    """Print the document on stdout: as exact JSON, or for people, whose terminal obeys no name in it."""
    if args.json:
        say(json.dumps(document))  # which escapes what is not ASCII itself
        return
    shown = render(printable_values(document))
    if isinstance(shown, str):  # lines of text, which a table's width must not fold
        with _stdout():
            print(shown)
        return
    from rich.console import Console

    class Result(Console):
        def on_broken_pipe(self) -> None:
            raise  # within rich's handler; its own one exits with code 1

    with _stdout():
        Result().print(shown, crop=False)  # a long file name is shown whole


@contextmanager
def _stdout() -> Iterator[None]:
    """Report a failure to write as one of standard output, at once."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error  # a BrokenPipeError stays one


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> None:
    """Write a table for spreadsheets.

    A spreadsheet runs a cell that begins like a formula, whatever the file says of its type, and file names come from
    strangers. Such a text gets an apostrophe in front, which spreadsheets read as "this is text". All text is quoted,
    so that no other separator can split it, and `printable`. The exact names are in the document of `--json`.

    Args:
        path: the file; an old one stays whole until this one is.
        header: a name for each column.
        rows: text and numbers; None leaves a cell empty.

    Raises:
        OSError: the file cannot be written; the error names it.
    """

    def cell(value: str | float | None) -> str | float | None:
        if not isinstance(value, str):
            return value
        text = printable(value)
        return f"'{text}" if text.lstrip()[:1] in FORMULA_STARTS else text

    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(header)
    writer.writerows(map(cell, row) for row in rows)
    content = text.getvalue().encode()
    try:
        if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
            path.write_bytes(content)
        else:
            write_atomic(path.resolve(), content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def runs_folder() -> Path:
    """Return the folder of all runs that are not given another one: $WRN_RUNS, or runs/."""
    return Path(os.path.expanduser(os.environ.get("WRN_RUNS") or "runs"))


def new_run_folder(*about: str) -> Path:
    """Make a new folder named after what it is about and the time."""
    name = "-".join((*about, time.strftime("%Y%m%d-%H%M%S")))
    return reserve_folder(runs_folder() / "".join(c if c.isalnum() or c in "-._" else "_" for c in name))
