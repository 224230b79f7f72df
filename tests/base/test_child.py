"""Child processes: what they are asked and answer, and that none outlives its use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wideresnet.base.child import Child, exit_text

Program = Callable[[str], str]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Write a module with lines of code that follow `parent = Parent()`; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(code: str) -> str:
        start = "import os, signal, sys, time\nfrom wideresnet.base.child import Parent\nparent = Parent()\n"
        (tmp_path / "child_of_a_test.py").write_text(start + code)
        return "child_of_a_test"

    return make


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], Path]:
    """Write a shell script that replaces the interpreter."""

    def make(line: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return path

    return make


def wait_for(happened: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_child_gets_the_document_and_its_answers_come_in_order(program: Program) -> None:
    document = {"number": 1.5, "text": 'two\nlines "\u65e5\u672c"', "list": [None, True]}
    with Child(program("parent.say(got=parent.document)\nparent.say(second=2)"), document) as child:
        assert list(child) == [{"got": document}, {"second": 2}]
        assert child.wait() == 0


def test_what_a_library_prints_is_not_an_answer_and_goes_to_the_log(program: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with Child(program('print("{}")\nos.system("echo by a program")\nparent.say(done=True)'), None, log=log) as child:
        assert list(child) == [{"done": True}]
    assert sorted(log.read_text().split("\n")[:-1]) == ["before", "by a program", "{}"]


def test_the_end_of_input_asks_the_child_to_stop(program: Program) -> None:
    code = "parent.when_gone(lambda: (parent.say(stopping=True), os._exit(3)))\nparent.say(ready=True)\ntime.sleep(60)"
    child = Child(program(code), None)
    answers = iter(child)
    assert next(answers) == {"ready": True}
    assert child.poll() is None
    child.stop()
    assert list(answers) == [{"stopping": True}]
    child.close()
    assert child.poll() == 3


def test_a_child_whose_parent_was_killed_notices(program: Program, tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"""
parent.when_gone(lambda: (parent.say(lost=True), open({str(note)!r}, "w").close(), os._exit(0)))
parent.say(pid=os.getpid())
time.sleep(60)
"""
    start = f"from wideresnet.base.child import Child\nprint(next(iter(Child({program(code)!r}, None))), flush=True)\n"
    words = [sys.executable, "-c", start + "import time; time.sleep(60)"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith(b"{'pid':")
        parent.kill()
    wait_for(note.exists)


def test_a_failure_in_the_block_kills_the_child(program: Program) -> None:
    pids = []
    name = program("signal.signal(signal.SIGINT, signal.SIG_IGN)\nparent.say(pid=os.getpid())\ntime.sleep(60)")

    def leave() -> None:
        with Child(name, None) as child:
            pids.append(next(iter(child))["pid"])
            assert is_running(pids[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert not is_running(pids[0])


def test_a_child_whose_answers_nobody_reads_can_be_closed(program: Program) -> None:
    with Child(program("while True: parent.say(text='a' * 1000)"), None) as child:
        next(iter(child))
        child.kill()
    with Child(program("parent.say(text='a' * 10**6)"), None):
        pass


@pytest.mark.parametrize("own_session", [True, False])
def test_only_its_own_session_keeps_ctrl_c_from_the_child(program: Program, own_session: bool) -> None:
    with Child(program("parent.say(session=os.getsid(0))"), None, own_session=own_session) as child:
        (answer,) = child
    assert (answer["session"] == os.getsid(0)) is not own_session


def test_the_child_has_the_packages_of_its_parent_and_the_variables_that_are_added(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # is not among them
    name = program("parent.say(path=sys.path, extra=os.environ['EXTRA'])")
    with Child(name, None, variables={"EXTRA": "1"}) as child:
        (answer,) = child
    places = list(dict.fromkeys(place for place in sys.path if place))
    assert [place for place in dict.fromkeys(answer["path"]) if place in places] == places
    assert str(elsewhere) not in answer["path"]
    assert answer["extra"] == "1"


@pytest.mark.parametrize(
    ("line", "code", "text"), [("kill -9 $$", -signal.SIGKILL, "killed by SIGKILL"), ("exit 7", 7, "exit code 7")]
)
def test_a_child_that_ends_without_a_message_is_described_by_its_exit_code(
    line: str, code: int, text: str, shell: Callable[[str], Path]
) -> None:
    with Child("any", None, python=shell(line)) as child:
        assert list(child) == []
        assert child.wait() == code
        assert exit_text(code) == text
        assert child.last_stderr_line() == ""
        child.kill()  # does no harm


@pytest.mark.parametrize("in_a_file", [True, False])
def test_the_last_line_of_any_amount_of_standard_error_is_found(
    in_a_file: bool, shell: Callable[[str], Path], tmp_path: Path
) -> None:
    log = tmp_path / "log" if in_a_file else None
    with Child("any", None, log=log, python=shell("head -c 200000 /dev/zero >&2; echo >&2; echo the end >&2")) as child:
        assert child.wait() == 0
        assert child.last_stderr_line() == "the end"
    with Child("any", None, log=log, python=shell("true")) as child:
        child.wait()
        assert child.last_stderr_line() == ""  # an older line is not this one's
