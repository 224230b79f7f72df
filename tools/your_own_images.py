"""Do what docs/your-own-images.md says, and write what it printed and drew into the page.

python tools/your_own_images.py

Each block of commands runs in a fresh folder, in the order of the page; the block of output below it is replaced. Two
CPU cores need about fifteen minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from PIL import Image

from pages import ROOT

PAGE, PICTURE = ROOT / "docs" / "your-own-images.md", ROOT / "docs" / "figures" / "your-own-sheet.png"
WIDTH, PICTURE_PX = 100, 900
"""Of the output, columns, and of the picture, pixels."""

BLOCK = re.compile(r"^```\n(?P<commands>.*?)^```\n(?P<between>\n)?(?:^```text\n.*?^```\n)?", re.DOTALL | re.MULTILINE)
"""A block of commands, and perhaps a block of their output below it."""

PROGRESS = re.compile(r"\b\d+ %  about .* left|about .* left\b")
"""Lines of progress, of which a terminal keeps only the last."""


REPEATED = (re.compile(r"epoch |this is (slower|faster) "), re.compile(r"new/|  "))
"""Lines of which a page shows the first and the last: epochs, and answers on images."""

NUM_SHOWN = 3
"""How many of them at each end."""


def shorten(lines: list[str]) -> list[str]:
    """Leave out the middle of long rows of lines that are alike."""
    shown: list[str] = []
    for kind, group in groupby(lines, lambda line: next((k for k in REPEATED if k.match(line)), None)):
        alike = list(group)
        is_long = kind is not None and len(alike) > 4 * NUM_SHOWN
        shown += [*alike[:NUM_SHOWN], "...", *alike[-NUM_SHOWN:]] if is_long else alike
    return shown


def run(commands: str, folder: Path) -> str:
    """Run lines in a shell as a user does, and return what they printed."""
    names = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"), "COLUMNS": str(WIDTH),
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", commands.replace("tools/", f"{ROOT}/tools/")], cwd=folder, text=True,
                          env={**os.environ, **names}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.search(line)]
    return "\n".join(shorten(lines)).strip("\n")


def main() -> None:
    """Run the page's blocks, and write the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def replaced(found: re.Match[str]) -> str:
            print(found["commands"], end="", flush=True)
            output = run(found["commands"], folder)
            print(output, flush=True)
            block = f"```\n{found['commands']}```\n"
            return block + (f"\n```text\n{output}\n```\n" if output else "")

        PAGE.write_text(BLOCK.sub(replaced, PAGE.read_text()))
        with Image.open(folder / "sheet.png") as sheet:
            sheet.thumbnail((PICTURE_PX, PICTURE_PX * 4))
            sheet.convert("RGB").quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
