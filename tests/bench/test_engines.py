"""Inference engines next to ours: the same answers, equal precisions, and what is missing is one line."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imagenet_like import make_folders
from wideresnet.bench import engines
from wideresnet.bench.answers import compare_answers
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import Contender, make_contender
from wideresnet.bench.measure import Lane
from wideresnet.bench.memory import memory_in_own_process
from wideresnet.bench.peers import PeerError
from wideresnet.bench.run import Method, run_bench
from wideresnet.bench.summary import fastest
from wideresnet.bench.words import ENGINES, answers_line, fastest_lines
from wideresnet.commands.bench import render
from wideresnet.commands.main import main
from wideresnet.engines.int8 import MAX_CHANGE
from wideresnet.spec.recipe import Recipe
from wideresnet.training import fit

SHORT = Method(turn_s=0, warm_up_s=0, matmul_side=64, memory=lambda *_: 12.5)
MACHINE = {"device": "cpu", "threads": 1, "repeats": 2, "seconds": 0}
TRAINED = Case("infer", "WRN-10-1", "cifar", 7, "cpu", "fp32", 1, "WRN-10-1-digits", "digits")


@pytest.fixture
def need_engine() -> Callable[[str], None]:
    """Skip a test if an engine cannot run here."""

    def need(name: str) -> None:
        for module in ("onnx", "onnxscript", *engines.MODULES.get(name, (name,))):
            if importlib.util.find_spec(module.partition(".")[0]) is None:
                pytest.skip(f"{module} is not installed")
        if ENGINES[name] == "bf16" and not engines.BF16_FLAGS & engines.cpu_flags():
            pytest.skip("this CPU has no instructions for bf16")

    return need


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_computes_what_ours_does_for_any_number_of_images(
    name: str, need_engine: Callable[[str], None]
) -> None:
    need_engine(name)
    case = replace(TRAINED, batch_size=2)
    images = TRAINED.batch()[0]
    contender, ours = make_contender(name, case), make_contender("wideresnet", case)
    assert contender.logits is not None
    assert ours.logits is not None
    assert contender.precision == ENGINES[name]
    assert ENGINES[name] in contender.configuration
    assert "1 thread" in contender.configuration
    found, expected = contender.logits(images), ours.logits(images)
    assert found.shape == (7, 10)
    if ENGINES[name] == "fp32":
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    else:
        assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).median() < 2 * MAX_CHANGE
    assert np.asarray(contender.call()).shape == (2, 10)


def test_the_memory_of_an_engine_is_measured_in_its_own_process(need_engine: Callable[[str], None]) -> None:
    need_engine("onnxruntime")
    peak_mib = memory_in_own_process("onnxruntime", Case("infer", "WRN-10-1", "cifar", 64, "cpu", "fp32", 1))
    assert peak_mib is not None
    assert 1 < peak_mib < 200


@pytest.mark.parametrize(
    ("missing", "name", "said"),
    [
        ("onnx", "openvino", 'needs onnx, which is not installed; pip install "wideresnet[export]"'),
        ("nncf", "openvino-int8", "needs nncf, which is not installed; pip install nncf"),
        ("cv2", "opencv", "needs opencv-python-headless, which is not installed; pip install opencv-python-headless"),
        ("MNN", "mnn", "needs MNN, which is not installed; pip install MNN"),
    ],
)
def test_a_missing_package_is_one_line_and_the_others_go_on(
    missing: str, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnx", "onnxscript", "openvino"):
        monkeypatch.setitem(sys.modules, module, sys)  # there is something of this name
    monkeypatch.setitem(sys.modules, missing, None)  # its import fails
    document = run_bench("infer", ["WRN-10-1"], tmp_path, batch_sizes=[1], against=[name, "plain"], method=SHORT,
                         **MACHINE)  # fmt: skip
    rows = {row["name"]: row for row in document["cases"][0]["contenders"]}
    assert rows[name]["problem"] == said
    assert len(rows["plain"]["seconds"]) == 2
    assert rows["plain"]["max_logit_difference"] < 1e-3  # it runs our weights


def test_what_an_engine_cannot_do_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(PeerError, match=r"^this CPU has no instructions for bf16$"):
        make_contender("openvino-bf16", TRAINED)
    with pytest.raises(PeerError, match=r"^runs on the CPU"):
        engines.check_machine("openvino", replace(TRAINED, device="cuda"))


def fake(name: str, case: Case, others: dict[str, Contender] | None = None) -> Contender:
    """A contender that takes no time; ours compute what they do."""
    if others and name in others:
        return others[name]
    if name.startswith("wideresnet"):
        contender = make_contender("wideresnet", replace(case, precision="fp32"))
        return replace(contender, name=name, precision=name.partition(" ")[2] or "fp32")
    return Contender(name, f"fake, {ENGINES[name]}", lambda: None, 1, ENGINES[name])


def test_each_engine_is_compared_with_ours_in_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wideresnet.bench.run.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    document = run_bench(
        "infer", ["WRN-10-1"], tmp_path, batch_sizes=[1], against=["openvino-int8", "openvino", "openvino-bf16"],
        method=replace(SHORT, make=fake), **MACHINE,
    )  # fmt: skip
    (case,) = document["cases"]
    rows = {row["name"]: row for row in case["contenders"]}
    assert list(rows)[:3] == ["wideresnet", "wideresnet bf16", "wideresnet int8"]  # ours in every precision that is met
    for other, ours in (("openvino", "wideresnet"), ("openvino-bf16", "wideresnet bf16"),
                        ("openvino-int8", "wideresnet int8")):  # fmt: skip
        pairs = zip(rows[ours]["seconds"], rows[other]["seconds"], strict=True)
        expected = sum(theirs / mine for mine, theirs in pairs) / 2
        assert rows[other]["ours_is_faster"]["median"] == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert case["best_peer"] == "openvino"
    assert case["fastest"] == {"fp32": "openvino", "bf16": "openvino-bf16", "int8": "openvino-int8"}
    assert "name trained weights" in answers_line(case)
    assert not [row for row in case["contenders"] if "top1_agreement_pct" in row]


def test_the_fastest_of_all_is_named_for_each_precision_if_it_is_not_ours(load_tool: Callable[[str], Any]) -> None:
    def row(name: str, precision: str, ms: float, faster: float | None = None) -> dict[str, Any]:
        call_s = dict.fromkeys(("median", "min", "quartile1", "quartile3"), ms / 1000)
        ratio = {} if faster is None else {"ours_is_faster": dict.fromkeys(call_s, faster)}
        return {"name": name, "precision": precision, "configuration": precision, "call_s": call_s,
                "images_per_s": 1000 / ms, "flops_per_s": 10**9, "share_of_matmul": 0.5, "peak_memory_mib": None,
                **ratio}  # fmt: skip

    rows = [row("wideresnet", "fp32", 4), row("wideresnet int8", "int8", 2), row("onnxruntime", "fp32", 5, 1.25),
            row("openvino-int8", "int8", 1, 0.5), row("openvino-bf16", "bf16", 3)]  # fmt: skip
    rows[3] |= {"top1_agreement_pct": 99.4, "num_test_images": 1000}
    rows[2] |= {"max_logit_difference": 4e-6}
    rows.append({"name": "ncnn", "problem": "needs ncnn"})
    case = {
        "job": "infer", "device": "cpu", "network": "WRN-16-4", "batch_size": 1, "contenders": rows, "num_rounds": 3,
        "best_peer": "onnxruntime", "parts": {"forward": {"median_s": 0.004}}, "precision": "fp32",
        "matmul": {"flops_per_s": 10**10, "what": "fp32"}, "weights": "WRN-16-4-cifar10", "data": "cifar10",
        "fastest": fastest(rows),
    }  # fmt: skip
    assert case["fastest"] == {"fp32": "wideresnet", "int8": "openvino-int8", "bf16": "openvino-bf16"}
    assert fastest_lines(case) == [
        "fp32: wideresnet, 1.25 x onnxruntime", "int8: openvino-int8, 2.00 x wideresnet int8",
        "bf16: openvino-bf16, alone",
    ]  # fmt: skip
    env = {"gpu": None, "cpu": "a CPU", "cpu_capability": "AVX2", "num_threads": 2, "torch": "2.14.1", "command": "wrn"}
    record = {"job": "infer", "env": env, "cases": [case], "folder": "results/speed/mine"}
    speed = load_tool("speed")
    page, table = speed.details([record]), speed.summary([record])
    assert "Fastest of all in fp32: wideresnet, 1.25 x onnxruntime; in int8: openvino-int8, 2.00 x" in page
    assert "on 1,000 test images." in page
    for text in ("| 99.4 % |", "| ± 4e-06 |", "0.50 x (0.50 to 0.50)", "(WRN-16-4-cifar10 on cifar10)"):
        assert text in page, text
    assert "int8, **0.50 x** openvino-int8 |" in table
    assert "fp32, **1.25 x** onnxruntime |" in table
    for block in page.split("\n\n"):
        bars = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(bars) <= 1, block
    assert render(record)


def lane(name: str, precision: str, logits: Callable[[Tensor], Tensor] | None) -> Lane:
    return Lane(Contender(name, "", lambda: None, 1, precision, logits), may_fail=name != "wideresnet")


def test_agreement_is_the_share_of_test_images_with_the_answer_of_ours() -> None:
    ours = make_contender("wideresnet", TRAINED)
    assert ours.logits is not None
    trained = TRAINED.trained
    assert trained is not None
    num, changed = len(trained.test), 9

    def other(images: Tensor) -> Tensor:
        logits = ours.logits(images)  # type: ignore[misc]
        if len(images) == num:
            logits[:changed] = -logits[:changed]  # another class for these
        return logits

    def failing(_: Tensor) -> Tensor:
        raise RuntimeError("two\nlines")

    lanes = [lane("wideresnet", "fp32", ours.logits), lane("ncnn", "fp32", lambda images: ours.logits(images) + 0.5),  # type: ignore[misc]
             lane("mnn", "fp32", failing), lane("openvino-int8", "int8", other), lane("timm", "fp32", None),
             lane("openvino", "fp32", ours.logits)]  # fmt: skip
    compare_answers(TRAINED, lanes)
    _, ncnn, mnn, int8, timm, openvino = lanes
    assert num > 300
    assert int8.answers == {"top1_agreement_pct": round(100 * (num - changed) / num, 2), "num_test_images": num}
    assert ncnn.problem.startswith("logits differ by 0.5 from those of wrn predict")
    assert mnn.problem == "RuntimeError: two lines"
    assert openvino.answers == {"max_logit_difference": 0.0}
    assert timm.answers == {}


def test_an_engine_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def broken() -> None:
        raise ValueError("cannot")

    others = {"mnn": Contender("mnn", "", broken, 1)}
    document = run_bench(
        "infer", ["WRN-10-1"], tmp_path, batch_sizes=[1], against=["mnn", "ncnn"],
        method=replace(SHORT, make=functools.partial(fake, others=others)), **MACHINE,
    )  # fmt: skip
    _, mnn, ncnn = document["cases"][0]["contenders"]
    assert mnn == {"name": "mnn", **({"version": mnn["version"]} if "version" in mnn else {}),
                   "problem": "ValueError: cannot"}  # fmt: skip
    assert len(ncnn["seconds"]) == 2


def test_trained_weights_are_timed_on_their_images_and_say_how_they_answer(tmp_path: Path) -> None:
    document = run_bench("infer", ["wrn-10-1-DIGITS"], tmp_path, batch_sizes=[2], data="digits", int8=True,
                         method=SHORT, **MACHINE)  # fmt: skip
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert case == document["cases"][0]
    assert (case["network"], case["weights"], case["data"]) == ("WRN-10-1", "wrn-10-1-DIGITS", "digits")
    int8 = case["contenders"][1]
    assert int8["num_test_images"] > 300
    assert int8["top1_agreement_pct"] > 95
    assert case["size_px"] == TRAINED.size_px


def test_weights_that_see_a_center_crop_are_timed_on_decoded_images(tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data", num_classes=2, train=3, test=3, high=80)
    recipe = Recipe.flat(
        network="WRN-10-1", data=str(data), epochs=1, batch_size=2, crop_padding=0, image_size=32, eval_size=32,
        eval_resize=36, eval_every=9, family="cifar", device="cpu", threads=1, kernels="pytorch", precision="fp32",
    )  # fmt: skip
    fit(recipe, tmp_path / "run")
    run_bench("infer", [str(tmp_path / "run")], tmp_path / "out", batch_sizes=[2], int8=True, method=SHORT, **MACHINE)
    (case,) = json.loads((tmp_path / "out" / "bench.json").read_text())["cases"]
    assert [contender.get("problem") for contender in case["contenders"]] == [None, None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "WRN-10-1", "--against", "openvino"), "an engine for inference, which does not train"),
        (("infer", "WRN-10-1", "--against", "openvino+careful"), "an engine has its precision in its name"),
        (("infer", "WRN-10-1", "--against", "onnxruntme"), "did you mean onnxruntime"),
        (("infer", "WRN-10-1", "--data", "digits"), "--data digits: is for trained weights"),
        (("infer", "WRN-10-1-digits"), "comes without its data; name it with --data"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_engines_print_does_not_reach_standard_output(need_engine: Callable[[str], None]) -> None:
    need_engine("mnn")  # it prints when it is imported, and when it starts
    code = (
        "from wideresnet.bench.case import Case; from wideresnet.bench.contenders import make_contender;"
        "make_contender('mnn', Case('infer', 'WRN-10-1', 'cifar', 1, 'cpu', 'fp32', 1)).call()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == ""
