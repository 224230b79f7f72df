"""The command line: what a user sees, with its exit codes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wideresnet
from wideresnet.commands.main import main

MakeNpz = Callable[..., Path]
QUICK = ("--epochs", "1", "--batch-size", "16", "--crop-padding", "1", "--device", "cpu", "--precision", "fp32")


def wrn(*words: object) -> int:
    """Run a command line in this process; argparse's own exits included."""
    try:
        return main([str(word) for word in words])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not file.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture
def run(make_npz: MakeNpz, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert wrn("train", "WRN-10-1", "--data", make_npz(), "--out", out, *QUICK) == 0
    return out


def test_training_and_its_weights_are_used_without_packages_that_take_seconds_to_import(tmp_path: Path) -> None:
    code = (
        "import sys; from wideresnet.commands.main import main\n"
        "for words in sys.argv[1:]: assert main(words.split()) == 0\n"
        "slow = {'torch._dynamo', 'sympy', 'torchvision', 'sklearn', 'scipy', 'matplotlib'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    words = [
        f"train WRN-10-1 --data digits --limit 64 {' '.join(QUICK)} --out run",
        "eval run --data digits --limit 16",
        "predict run photo.png",
        "info WRN-16-4",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_answers_at_once_because_it_imports_no_torch() -> None:
    code = "import sys; from wideresnet.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules), 'heavy imports'"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    cpu_s = []
    for _ in range(4):  # processor time, which other work on the machine does not lengthen; the first run compiles
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = [sys.executable, "-m", "wideresnet", "--help"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(cpu_s) < 0.3


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert wrn() == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: wrn ")
    assert "wrn VERB --help" in captured.out
    assert captured.err == ""


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert wrn("--version") == 0
    assert capsys.readouterr().out == f"wrn {wideresnet.__version__}\n"


@pytest.mark.parametrize("verb", ["train", "eval", "predict", "info", "report", "bench", "cache"])
def test_each_verb_has_help_with_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrn(verb, "--help") == 0
    text = capsys.readouterr().out
    assert f"example: wrn {verb}" in text
    assert "--json" in text


def test_train_help_names_the_source_of_each_choice_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    wrn("train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "paper, section 3" in text
    assert "authors' train.lua" in text


@pytest.mark.usefixtures("pages")
def test_train_shows_the_recipe_what_was_overridden_and_the_arithmetic_first(
    make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrn("train", "WRN-10-1", "--data", make_npz(), "--out", tmp_path / "run", *QUICK, "--lr", "0.05") == 0
    captured = capsys.readouterr()
    before_training = " ".join(captured.err.split("epoch 1", 1)[0].split())
    before_training = " ".join(before_training.replace("│", " ").split())  # a cell of several lines
    for words in ("overridden", "lr 0.05 (recipe: 0.1)", "epochs 1 (recipe: 200)",
                  "steps", "FLOP", "expected time", "expected memory"):  # fmt: skip
        assert words in before_training, words
    assert "nesterov" not in before_training  # as in the recipe, which recipe.json has whole
    assert "test error" in captured.out
    for name in ("curves.png", "predictions.png", "report.html"):
        assert name in captured.out
        assert (tmp_path / "run" / name).is_file()


def test_json_is_one_document_on_stdout(make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = make_npz(), tmp_path / "run"
    assert wrn("train", "WRN-10-1", "--data", data, "--out", out, *QUICK, "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["run"] == str(out)
    assert wrn("eval", out, "--data", data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["error_pct"] == trained["test_error_pct"]
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "a.png")
    assert wrn("predict", out, tmp_path / "a.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["file"].endswith("a.png")
    assert wrn("info", "WRN-28-10", "--json") == 0
    assert json.loads(capsys.readouterr().out)["params"] == 36_479_194
    assert wrn("report", out, "--json") == 0
    assert Path(json.loads(capsys.readouterr().out)["page"]).is_file()
    assert wrn("cache", "--json") == 0
    assert "folder" in json.loads(capsys.readouterr().out)


def test_eval_predict_info_report_and_cache_speak_to_people(
    run: Path, make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "a.png")
    capsys.readouterr()
    for words, expected in (
        (("eval", run, "--data", make_npz()), "%"),
        (("eval", run), "%"),
        (("predict", run, "a.png"), "a.png"),
        (("info", "WRN-16-4"), "2,748,890"),
        (("info", "list"), "WRN-28-10"),
        (("info", "WRN-16-4", "WRN-10-1"), "77,850"),
        (("report", run), "report.html"),
        (("eval", run, "--csv", "classes.csv"), "%"),
        (("cache",), "WRN_DATA"),
        (("cache", "--clear"), "freed"),
    ):
        assert wrn(*words) == 0, words
        assert expected in capsys.readouterr().out, words
    header, *rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert header == '"class","num_images","num_errors","error_pct"'
    assert [row.split(",")[:2] for row in rows] == [[f'"{name}"', "6"] for name in range(4)]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("train", "WRN-29-10", "--data", "digits"), 2, "WRN-28-10"),
        (("train", "WRN-28-1.03", "--data", "digits"), 2, "WRN-28"),
        (("train", "WRN-40-2-B(2,3)", "--data", "digits"), 2, "1, 3, 5 or 7"),
        (("train", "WRN-16-4", "--data", "cifar11"), 2, "cifar10"),
        (("train", "WRN-16-4", "--data", "/no/such/folder"), 2, "/no/such/folder"),
        (("train", "WRN-16-4"), 2, "--data"),
        (("train", "WRN-16-4", "--data", "digits", "--recipe", "papre"), 2, "paper"),
        (("train", "WRN-16-4", "--data", "digits", "--epochs", "0"), 2, "at least 1"),
        (("train", "WRN-16-4", "--data", "digits", "--batch-size", "5000"), 2, "1437"),
        (("train", "WRN-16-4", "--data", "digits", "--resume"), 2, "--out"),
        (("train", "WRN-16-4", "--data", "digits", "--extra-data"), 2, "svhn"),
        (("train", "WRN-16-4", "--data", "digits", "--crop-padding", "9"), 2, "reflection"),
        (("train", "WRN-16-4", "--data", "digits", "--image-scales", "x"), 2, "--image-scales"),
        (("train", "WRN-16-4", "--data", "digits", "--activation", "gelu"), 2, "relu"),
        (("eval", "/no/such/run", "--data", "digits"), 2, "model.safetensors"),
        (("predict", "/no/such/run", "x.png"), 2, "x.png"),
        (("info", "WRN-34-2"), 2, "family"),
        (("info", "WNR-28-10"), 2, "WRN-28-10"),
        (("report", "/no/such/run"), 2, "/no/such/run"),
        (("fly",), 2, "'fly': one of check, train, eval"),
        (("trian", "WRN-16-4"), 2, "did you mean train?"),
        (("bench", "trian", "WRN-16-4"), 2, "did you mean train?"),
        (("train", "WRN-16-4", "--data", "digits", "--dropuot", "0.3"), 2, "did you mean --dropout"),
        (("train", "WRN-16-4", "--data", "digits", "--schedule", "onecycle"), 2, "did you mean one_cycle?"),
        (("info", "WRN-16-4", "--zzz"), 2, "unrecognized arguments: --zzz; see wrn info --help"),
        (("train", "--resume", "nowhere"), 2, "--resume: nowhere holds no run"),
    ],
)
def test_a_mistake_gets_one_line_with_the_fix_and_its_exit_code(
    words: tuple[str, ...], code: int, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert wrn(*words) == code
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert len([line for line in captured.err.splitlines() if line.startswith("wrn")]) == 1
    assert not (tmp_path / "runs").exists()


def test_unreadable_images_stop_the_run_before_it_starts_and_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for split, num in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                Image.fromarray(random.integers(0, 255, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "pets" / "train" / "cat" / "0.png").write_bytes(b"")
    words = ("train", "WRN-10-1", "--data", tmp_path / "pets", "--out", tmp_path / "run", "--epochs", 1,
             "--batch-size", 4, "--crop-padding", 1)  # fmt: skip
    assert wrn(*words) == 1
    message = capsys.readouterr().err
    assert "0.png" in message
    assert "--skip-unreadable" in message
    assert not (tmp_path / "run").exists()
    assert wrn(*words, "--skip-unreadable") == 0
    assert "0.png" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("autotuning")
def test_ctrl_c_of_the_real_command_says_how_to_resume_and_resuming_needs_only_the_folder(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "wideresnet", "train"]
    out = tmp_path / "my limit=3"  # which must not be taken for an argument
    flags = ["WRN-10-1", "--data", str(make_npz(num_train=256)), "--batch-size", "16", "--epochs", "500"]
    process = subprocess.Popen(
        [*command, *flags, "--out", str(out), "--checkpoint-every", "1"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for(out / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"everything is saved; continue with: wrn train --resume --out '{out}'" in errors
    assert "resume=True" not in errors
    assert "Traceback" not in errors
    assert wrn("train", "--resume", "--out", out, "--epochs", "3") == 2  # another run than the one that was begun
    assert wrn("train", "WRN-16-1", "--resume", "--out", out) == 2


@pytest.mark.usefixtures("pages")
def test_a_network_whose_name_reads_both_ways_is_trained_and_reported(make_npz: MakeNpz, tmp_path: Path) -> None:
    words = ("train", "WRN-34-1", "--data", make_npz(), "--out", tmp_path / "run", *QUICK)
    assert wrn(*words) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert wrn("report", tmp_path / "run") == 0


def test_a_recipe_file_alone_is_enough_to_train(run: Path, tmp_path: Path) -> None:
    assert wrn("train", "--recipe", run / "recipe.json", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_names_that_look_like_markup_are_shown_as_they_are(
    make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cats[").mkdir()
    data = make_npz().rename(tmp_path / "cats[" / "b].npz")
    assert wrn("train", "WRN-10-1", "--data", data, "--out", tmp_path / "[x]", *QUICK) == 0
    shown = capsys.readouterr().err.replace("│", "")  # a long path is folded inside the table
    assert "cats[/b].npz" in "".join(shown.split())


def test_overwriting_a_run_spares_what_is_not_the_run_s(run: Path, make_npz: MakeNpz) -> None:
    (run / "thesis.tex").write_text("years of work")
    assert wrn("train", "WRN-10-1", "--data", make_npz(), "--out", run, "--overwrite", *QUICK) == 2
    assert (run / "thesis.tex").read_text() == "years of work"
    assert (run / "result.json").is_file()


def test_train_help_tells_the_epochs_of_each_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    wrn("train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name, epochs in (("paper", "200 (svhn 160)"), ("quick", "18 (digits 69)"), ("fast", "9 (digits 69)")):
        assert f"{name} {epochs}" in text


@pytest.mark.parametrize("verb", [(), ("train",), ("info",), ("bench",)])
def test_no_example_has_parentheses_that_a_shell_would_trip_over(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    wrn(*verb, "--help")
    text = capsys.readouterr().out
    assert text.count("B(") == text.count("-B(3,1,3)'")


def test_resuming_needs_no_flag_for_the_folder(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    for words in (("--resume", "run"), ("run", "--resume"), ("--resume", "--out", "run")):
        capsys.readouterr()
        assert wrn("train", *words) == 0
        assert "run: this run has finished; nothing to resume" in capsys.readouterr().err


def test_a_folder_called_like_a_network_is_resumed_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.rename(run.with_name("WRN-16-4")).parent)
    assert wrn("train", "--resume", "WRN-16-4") == 0


def test_the_report_of_a_folder_of_seeds_compares_them(
    make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "WRN-10-1", "--data", make_npz(), "--out", tmp_path / "seeds", *QUICK, "--seeds", "2", "--json")
    assert wrn(*words) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(tmp_path / "seeds")
    page = tmp_path / "seeds" / "comparison.html"
    page.unlink()
    assert wrn("report", tmp_path / "seeds") == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.is_file()


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_another_ctrl_c_while_the_command_ends_prints_no_traceback(
    make_npz: MakeNpz, tmp_path: Path, delay_s: float
) -> None:
    flags = ["WRN-10-1", "--data", str(make_npz(num_train=256)), "--batch-size", "16", "--epochs", "500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wideresnet", "train", *flags, "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = ""
    while "continue with" not in said and (line := process.stderr.readline()):
        said += line
    for _ in range(5):
        time.sleep(delay_s / 5)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in said + errors
    assert process.returncode == 130


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_running_out_of_memory_is_one_line(
    error: Exception, make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["wideresnet.training.fit"], "make_plan", fail)
    assert wrn("train", "WRN-10-1", "--data", make_npz(), "--out", tmp_path / "run", *QUICK) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("wrn: out of memory; use a smaller --batch-size")


@pytest.mark.parametrize("limit_kib", [300_000, 1_000_000, 2_000_000, 4_000_000])
def test_little_address_space_is_no_traceback(limit_kib: int, make_npz: MakeNpz, tmp_path: Path) -> None:
    command = f"ulimit -v {limit_kib}; exec {sys.executable} -m wideresnet train WRN-10-1 --data {make_npz()} --out run"
    words = ["bash", "-c", f"{command} {' '.join(QUICK)}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert "Traceback" not in done.stderr
    if done.returncode not in (0, -6):  # -6: a library of C++ that has no memory for its error gives up
        assert done.returncode == 1
