"""`wrn bench` from the command line to record, table, plot and pages."""

from __future__ import annotations

import argparse
import functools
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import Contender, make_contender
from wideresnet.bench.measure import Lane
from wideresnet.bench.memory import memory_in_own_process
from wideresnet.bench.plots import draw_bars, draw_figure4
from wideresnet.bench.run import Method, run_bench
from wideresnet.bench.start import time_first_step
from wideresnet.bench.summary import best_peer, contradiction
from wideresnet.bench.words import parts_line
from wideresnet.commands.bench import render
from wideresnet.commands.main import main, make_parser

ROOT = Path(__file__).parent.parent.parent
QUICK = ("--repeats", "2", "--seconds", "0", "--threads", "1", "--device", "cpu", "--precision", "fp32")
SHORT = Method(
    turn_s=0, warm_up_s=0, matmul_side=64, make=functools.partial(make_contender, feed_bytes=2**16),
    memory=lambda *_: 12.5,
)  # fmt: skip
"""Turns of single calls, a small matrix product, a small training set, no process for the memory."""


def wrn(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def bench(*words: object, **method: Any) -> None:
    """Run a command line with a method that is not the usual one."""
    argv = ["bench", *map(str, words)]
    args = make_parser().parse_args(argv, argparse.Namespace(argv=argv))
    args.verb(args, **{"method": SHORT, **method})


def row(name: str, images_per_s: float, faster: float | None = None) -> dict[str, Any]:
    call_s = dict.fromkeys(("median", "min", "quartile1", "quartile3"), 4 / images_per_s)
    ratio = {} if faster is None else {"ours_is_faster": dict.fromkeys(call_s, faster)}
    return {
        "name": name, "configuration": "as it is", "call_s": call_s, "images_per_s": images_per_s,
        "flops_per_s": 10**9, "share_of_matmul": 0.25, "peak_memory_mib": None, **ratio,
    }  # fmt: skip


def document(*rows: dict[str, Any], job: str = "train") -> dict[str, Any]:
    case = {
        "job": "train", "device": "cpu", "network": "WRN-28-10", "batch_size": 4, "contenders": list(rows),
        "num_rounds": 3, "best_peer": best_peer(rows), "parts": {"forward": {"median_s": 0.01}}, "paper_ms": 312,
        "precision": "fp32", "matmul": {"flops_per_s": 10**10, "what": "fp32"},
    }  # fmt: skip
    env = {"gpu": None, "cpu": "a CPU", "cpu_capability": "AVX2", "num_threads": 2, "torch": "2.11.0+cpu",
           "command": "wrn bench train WRN-28-10"}  # fmt: skip
    return {"job": job, "env": env, "cases": [case], "folder": "results/speed/mine"}


FULL = document(
    row("wideresnet", 100.0), row("plain", 90.0, 1.11), row("timm", 80.0, 1.25), row("a.b:net", 50.0, 2.0),
    row("timm+careful", 99.0, 1.01), {"name": "torchvision", "problem": "has no WRN-28-10 | [x] $y^"},
)  # fmt: skip


def shown(what: dict[str, Any]) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(render(what))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_train_against_others_leaves_one_document_record_and_plot(
    others: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = tmp_path / "out", [f"{others}:same", f"{others}:raising", "plain"]
    words = ("train", "WRN-10-1", "--batch-size", 4, "--against", *names, *QUICK, "--out", out, "--json")
    bench(*words)
    printed = json.loads(capsys.readouterr().out)
    assert printed["env"]["command"].startswith("wrn bench train WRN-10-1 --batch-size 4 --against")
    assert printed == json.loads((out / "bench.json").read_text())
    with Image.open(out / "bench.png") as picture:
        assert picture.size[0] > 0
    (case,) = printed["cases"]
    assert (case["params"], case["batch_size"], case["num_rounds"]) == (77_850, 4, 2)
    assert [found["name"] for found in case["contenders"]] == ["wideresnet", *names]
    ours, same, raising, _ = case["contenders"]
    assert raising["problem"] == "RuntimeError: two lines"
    assert case["best_peer"] == f"{others}:same"
    assert len(ours["seconds"]) == len(same["seconds"]) == len(case["matmul"]["seconds"]) == 2
    ratios = [theirs / mine for mine, theirs in zip(ours["seconds"], same["seconds"], strict=True)]
    assert same["ours_is_faster"]["median"] == pytest.approx(sum(ratios) / 2, rel=1e-3)
    assert ours["images_per_s"] == pytest.approx(4 / ours["call_s"]["median"], rel=1e-3)
    assert ours["share_of_matmul"] == pytest.approx(ours["flops_per_s"] / case["matmul"]["flops_per_s"], rel=1e-2)
    assert list(case["parts"]) == ["loading and augmentation", "forward", "backward", "optimiser"]
    assert ", optimizer " in parts_line(case)
    assert ours["peak_memory_mib"] == 12.5
    with pytest.raises(UsageError, match="choose another out="):  # a record is never written over
        bench(*words)


def test_infer_takes_several_batch_sizes_and_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("infer", "WRN-10-1", "--batch-size", "1,3", "--against", "torchvision")
    bench(*words, *QUICK, "--out", tmp_path / "out")
    text = " ".join(capsys.readouterr().out.split())
    for expected in ("inference, batch 1", "inference, batch 3", "torchvision: has no WRN-10-1", "preprocessing",
                     "peak", "of matmul", "bench.png"):  # fmt: skip
        assert expected in text, expected


@pytest.mark.parametrize("job", ["train", "infer"])
def test_ratios_are_between_equal_precisions_and_a_lower_one_has_its_own_row(
    job: str, others: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chosen by itself, ours is in fp32, as the others are. bf16 is a row of its own, if it is asked for."""
    peers = [f"{others}:same", f"{others}:same+careful", "plain"]
    words = (job, "WRN-10-1", "--batch-size", 2, "--against", *peers)
    bench(*words, *QUICK[:-1], "auto", "--out", tmp_path / "auto")
    (case,) = json.loads((tmp_path / "auto" / "bench.json").read_text())["cases"]
    assert case["precision"] == "fp32"
    assert {row["precision"] for row in case["contenders"]} == {"fp32"}
    assert all("ours_is_faster" in row for row in case["contenders"][1:])
    assert not [row for row in case["contenders"] if "top1_agreement_pct" in row]

    bench(*words, *QUICK[:-1], "bf16", "--out", tmp_path / "bf16")
    (case,) = json.loads((tmp_path / "bf16" / "bench.json").read_text())["cases"]
    rows = {row["name"]: row for row in case["contenders"]}
    assert {name: row["precision"] for name, row in rows.items()} == {
        "wideresnet": "fp32", "wideresnet bf16": "bf16", peers[0]: "fp32", peers[1]: "bf16", "plain": "fp32",
    }  # fmt: skip
    assert all(row["precision"] in row["configuration"] for row in rows.values())
    assert case["best_peer"] == peers[0]
    assert case["matmul"]["what"].startswith("fp32")
    ours, bf16 = rows["wideresnet"], rows["wideresnet bf16"]
    for own, other in ((ours, rows[peers[0]]), (bf16, rows[peers[1]]), (ours, rows["plain"])):
        pairs = zip(own["seconds"], other["seconds"], strict=True)
        expected = statistics.median(theirs / mine for mine, theirs in pairs)
        assert other["ours_is_faster"]["median"] == pytest.approx(expected, rel=1e-3)
    assert "ours_is_faster" not in bf16
    assert "top1_agreement_pct" not in bf16  # answers of random weights say nothing
    assert ("max_logit_difference" in rows["plain"]) == (job == "infer")  # which has our weights
    text = " ".join(capsys.readouterr().out.split())
    assert ("random weights answer nothing: name trained weights" in text) == (job == "infer")


@pytest.mark.parametrize(("pieces_s", "warned"), [((0.06, 0.04), False), ((0.05, 0.03), True), ((0.09, 0.04), True)])
def test_pieces_that_contradict_the_whole_are_a_warning(pieces_s: tuple[float, float], warned: bool) -> None:
    forward, backward = pieces_s
    lane = Lane(Contender("wideresnet", "", lambda: None, 1), seconds=[0.1, 0.1, 5.0])
    lane.parts = [{"loading and augmentation": 9.0, "forward": forward, "backward": backward}] * 3
    assert bool(contradiction(lane)) == warned
    case = {**FULL["cases"][0], "warnings": [contradiction(lane)] if warned else []}
    assert ("measure again on a quiet machine" in " ".join(shown({**FULL, "cases": [case]}).split())) == warned


def test_inference_is_in_fp32_unless_bf16_is_asked_for(make_case: Callable[..., Case]) -> None:
    contender = make_contender("wideresnet", make_case(job="infer"))
    assert contender.configuration.startswith("Winograd kernels")
    assert contender.precision == "fp32"
    contender = make_contender("wideresnet bf16", make_case(job="infer"))
    assert (contender.name, contender.precision) == ("wideresnet bf16", "bf16")
    assert contender.configuration == "channels last in memory, bf16, 1 thread"


def test_settings_of_pytorch_are_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.get_rng_state().tolist()
    run_bench("infer", ["WRN-10-1"], tmp_path / "out", batch_sizes=[1], threads=2, repeats=1, seconds=0,
              device="cpu", precision="fp32", method=SHORT)  # fmt: skip
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.get_rng_state().tolist()) == before


def test_figure_4_compares_this_machine_with_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper_ms = {"PreActResNet-20-basic": 85, "WRN-10-1": 312}
    bench("figure4", *QUICK, "--out", tmp_path / "out", "--json", paper_ms=paper_ms, batch_size=2)
    printed = json.loads(capsys.readouterr().out)
    assert [(case["network"], case["paper_ms"]) for case in printed["cases"]] == [
        ("PreActResNet-20-basic", 85), ("WRN-10-1", 312),
    ]  # fmt: skip
    first, second = (case["contenders"][0]["seconds"] for case in printed["cases"])
    assert len(first) == len(second) == 2
    assert (tmp_path / "out" / "bench.png").is_file()
    text = shown(printed)
    assert "Figure 4" in text
    assert "312" in text


@pytest.mark.slow
def test_first_steps_are_timed_in_fresh_processes_with_and_without_a_cache(
    tmp_path: Path, load_tool: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRN_DATA", str(tmp_path / "mine"))
    flags = ("--batch-size", 4, "--repeats", 1, "--threads", 1)
    assert wrn("bench", "start", "WRN-10-1", *flags, "--out", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    (case,) = record["cases"]
    assert [found["name"] for found in case["starts"]] == ["cold", "warm", "plain"]
    for found in case["starts"]:
        assert len(found["seconds"]) == case["num_rounds"] == 1
        assert min(found["seconds"]) > 0.1
    assert ["1 thread" in " ".join(found["configurations"]) for found in case["starts"]] == [True] * 3
    assert not (tmp_path / "mine" / "fastest.json").exists()  # what the user's own cache holds does not count
    with Image.open(tmp_path / "out" / "bench.png") as picture:
        assert picture.size[0] > 0
    assert "cold" in shown(record)
    page = load_tool("speed").details([{**record, "folder": "results/speed/mine"}])
    assert "| WRN-10-1 | 4 | plain |" in page
    assert load_tool("speed").summary([record]) == load_tool("speed").EMPTY


def test_a_process_that_ends_before_its_step_is_one_line(tmp_path: Path) -> None:
    case = Case("train", "WRN-10-1", "cifar", 4, "cpu", "fp32", 1)
    with pytest.raises(WRNError, match=r"^WRN-10-1, cold: the process ended before a step: .*not-there.npz: no such"):
        time_first_step("cold", case, tmp_path / "not-there.npz", 1)


def test_the_memory_of_a_contender_is_measured_in_its_own_process() -> None:
    case = Case("train", "WRN-10-1", "cifar", 64, "cpu", "fp32", 1)
    peak_mib, activations_mib = memory_in_own_process("wideresnet", case), case.cost.activation_bytes / 2**20
    assert peak_mib is not None
    assert activations_mib < peak_mib < 3 * activations_mib
    assert memory_in_own_process("torchvision", case) is None  # whose process fails: it has no such network


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train",), "NETWORK"),
        (("train", "WRN-29-10"), "WRN-28-10"),
        (("train", "WRN-34-2"), "family"),
        (("train", "WRN-10-1", "--against", "tim"), "did you mean timm"),
        (("train", "WRN-10-1", "--batch-size", "0"), "at least 1"),
        (("infer", "WRN-10-1", "--batch-size", "1;2"), "e.g. 1,64"),
        (("train", "WRN-10-1", "--threads", "0"), "--threads 0"),
        (("train", "WRN-10-1", "--repeats", "0"), "--repeats 0"),
        (("train", "WRN-10-1", "--seconds", "nan"), "--seconds nan"),
        (("figure4", "WRN-10-1"), "unrecognized"),
        (("start", "WRN-10-1", "--batch-size", "1"), "at least 2"),
        (("fly",), "one of train, infer, start, figure4"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert wrn("bench", *words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_the_best_peer_is_the_fastest_as_its_users_run_it() -> None:
    assert FULL["cases"][0]["best_peer"] == "timm"
    assert best_peer([row("wideresnet", 9.0), row("plain", 8.0, 1.0)]) is None
    assert best_peer([row("wideresnet", 9.0), row("timm+careful", 8.0, 1.0)]) == "timm+careful"


def test_the_table_fits_eighty_columns_and_is_complete() -> None:
    text = shown(FULL)
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("wideresnet", "1.25 x", "25 %", "torchvision: has no WRN-28-10 | [x] $y^", "timm+careful",
                     "1.25 x timm, the fastest other", "forward 10.0 ms"):  # fmt: skip
        assert expected in " ".join(text.split()), expected
    assert "…" not in text


def test_plots_show_every_contender_and_its_problem() -> None:
    (axes,) = draw_bars(FULL).axes
    texts = " ".join(text.get_text() for text in axes.texts)
    assert "has no WRN-28-10 | [x] $y^" in texts
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "wideresnet", "plain", "timm", "net", "timm+careful", "torchvision",
    ]  # fmt: skip
    assert "1.25 x timm" in axes.get_title(loc="left")
    paper, today = draw_figure4(document(row("wideresnet", 100.0), job="figure4")).axes
    assert [text.get_text() for text in paper.texts] == ["312", "4.00 %"]
    assert today.texts[0].get_text() == "40"


def test_pages_are_made_from_records_and_say_so_if_there_are_none(load_tool: Callable[[str], Any]) -> None:
    speed = load_tool("speed")
    assert speed.summary([]) == speed.EMPTY
    assert speed.EMPTY in speed.details([])
    figure4 = document(row("wideresnet", 100.0), job="figure4")
    assert speed.summary([figure4]) == speed.EMPTY
    table = speed.summary([FULL, figure4]).splitlines()
    assert len(table) == 3
    assert "2 threads of a CPU (AVX2)" in table[0]
    assert table[2] == "| WRN-28-10 | training | 4 | [100](results/speed/mine/bench.json) fp32, **1.25 x** timm |"
    elsewhere = {**FULL, "env": {**FULL["env"], "gpu": "a GPU"}}
    assert speed.summary([FULL, elsewhere]).splitlines()[0].endswith("| 2 threads of a CPU (AVX2) | a GPU |")
    page = speed.details([FULL, figure4])
    for expected in ("has no WRN-28-10 / [x]", "timm+careful", "Figure 4", "../results/speed/mine/bench.png"):
        assert expected in page, expected
    for block in page.split("\n\n"):
        bars = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(bars) <= 1, block


def test_the_committed_pages_are_what_the_records_say() -> None:
    done = subprocess.run([sys.executable, "tools/speed.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_int8_has_its_row_and_with_random_weights_no_agreement(
    others: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    words = ("infer", "WRN-10-1", "--batch-size", "2", "--int8", "--against", f"{others}:same")
    bench(*words, "--out", out, *QUICK)
    (case,) = json.loads((out / "bench.json").read_text())["cases"]
    ours, int8, peer = case["contenders"]
    assert [ours["name"], int8["name"], peer["name"]] == ["wideresnet", "wideresnet int8", f"{others}:same"]
    assert case["best_peer"] == peer["name"]
    assert "ours_is_faster" not in int8  # it has less precision than the peer
    assert "top1_agreement_pct" not in int8
    assert "fastest of all in int8: wideresnet int8, alone" in capsys.readouterr().out
