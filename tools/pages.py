"""Pages made from committed records: the two that share README.md and docs/ write and check them by this module."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent


def between(text: str, begin: str, end: str, content: str) -> str:
    """Replace what stands between two marks.

    Args:
        text: a page that has both marks, each once.
        begin: the first mark, which stays.
        end: the second mark, which stays.
        content: what is to stand between them, with an empty line before and after it.
    """
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def portable(command: str) -> str:
    """Return a record's command without the folders of the machine that it ran on: "--out /a/b" becomes "--out b"."""
    return shlex.join(PurePosixPath(word).name if word.startswith("/") else word for word in shlex.split(command))


def write_or_check(pages: Mapping[Path, str], records: str) -> int:
    """Write the pages that have changed; with `--check` on the command line, only name them on stderr.

    Args:
        pages: path -> content.
        records: the folder of the records, for the message.

    Returns:
        The exit code: 1 if `--check` has found a stale page.
    """
    stale = [path for path, content in pages.items() if not path.is_file() or path.read_text() != content]
    if "--check" in sys.argv[1:]:
        for path in stale:
            name = path.relative_to(ROOT)
            print(f"{name} is not what the records in {records} say: run `make results`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table."""
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows))
    return "\n".join([first, "|---" * len(header) + "|", *others])


def fenced(*commands: str) -> str:
    """Show commands."""
    return "\n".join(["```", *commands, "```"])
