"""Inference engines that networks are deployed with: the same weights and images, converted and run by each.

An engine takes two steps. Its model is converted once per network; ways to run it are timed for a moment, and the
fastest is the contender. All of it runs on the CPU, by as many threads as ours.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from wideresnet.base.format import counted
from wideresnet.base.streams import muted
from wideresnet.bench.case import Case
from wideresnet.bench.convert import converted
from wideresnet.bench.peers import PeerError
from wideresnet.bench.words import ENGINES
from wideresnet.export.metadata import INPUT, LOGITS
from wideresnet.export.packages import need
from wideresnet.export.sessions import Run, open_openvino, start_onnxruntime, start_openvino
from wideresnet.machine.cpu import BF16_FLAGS, cpu_flags

TRIAL_S = 0.5
"""Each way to run an engine is timed at least once, and for this long. This package's choice."""

MAX_TRIALS = 20


@dataclass(frozen=True)
class Way:
    """One way to run an engine.

    Attributes:
        how: in words, with its threads.
        start: loads the model.
    """

    how: str
    start: Callable[[], Run]


@dataclass(frozen=True)
class Engine:
    """An engine that is ready to run.

    Attributes:
        configuration: how it runs, as in `Contender`.
        precision: "fp32", "bf16" or "int8".
        run: computes logits.
    """

    configuration: str
    precision: str
    run: Run


def build_engine(name: str, case: Case, *, folder: Path | None = None, choice: int | None = None) -> Engine:
    """Convert the network for an engine, and start it in its fastest way.

    Args:
        name: one of `ENGINES`.
        case: has the network and the batch.
        folder: holds the converted model; None converts it.
        choice: number of the way; None times them.

    Raises:
        UsageError: a package is missing.
        PeerError: this machine or job is not for it.
        Exception: whatever the engine raises.
    """
    check_machine(name, case)
    with muted(), contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_model(name, case, folder)
        ways = WAYS[name](folder, case)
        way = ways[fastest_way(name, case) if choice is None else choice]
        return Engine(f"{way.how}, {ENGINES[name]}{NOTES.get(name, '')}", ENGINES[name], way.start())


def check_machine(name: str, case: Case) -> None:
    """Refuse what an engine cannot do here, before its model is converted, which takes seconds.

    Raises:
        UsageError: a package is missing.
        PeerError: this machine or job is not for it.
    """
    if case.job != "infer":
        raise PeerError("an engine for inference; it does not train")
    if case.device != "cpu":
        raise PeerError("runs on the CPU; measure with device='cpu'")
    if ENGINES[name] == "bf16" and not BF16_FLAGS & cpu_flags():
        raise PeerError("this CPU has no instructions for bf16")
    with muted():  # MNN prints when it is imported
        for module in ("onnx", "onnxscript", *MODULES.get(name, (name,))):
            need(module)


def write_model(name: str, case: Case, folder: Path) -> None:
    """Write the files of the converted network."""
    for file, content in converted(name, replace(case, batch_size=1)).items():
        (folder / file).write_bytes(content)


@lru_cache(maxsize=2 * len(ENGINES))
def fastest_way(name: str, case: Case) -> int:
    """Time the ways to run an engine, in turns, and return the number of the fastest."""
    with muted(), tempfile.TemporaryDirectory() as folder:
        write_model(name, case, Path(folder))
        ways = WAYS[name](Path(folder), case)
        if len(ways) == 1:
            return 0
        images, runs, problems = case.batch()[0].numpy(), dict[int, Run](), list[Exception]()
        for place, way in enumerate(ways):
            try:
                runs[place] = way.start()
                runs[place](images)
            except Exception as problem:  # one way of an engine may not take a network that another takes
                problems.append(problem)
        if not runs:
            raise problems[0]
        best, started = dict.fromkeys(runs, float("inf")), time.perf_counter()
        for _ in range(MAX_TRIALS):
            for place, run in runs.items():
                begun = time.perf_counter()
                run(images)
                best[place] = min(best[place], time.perf_counter() - begun)
            if time.perf_counter() - started > TRIAL_S * len(runs):
                break
        return min(best, key=lambda place: best[place])


def in_batches(run: Run, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Compute the logits of any number of images, (N, C, H, W), by an engine that takes batches of one size."""
    found = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        filled = np.resize(part, (batch_size, *part.shape[1:]))  # repeats the images of the last batch
        found.append(np.array(run(np.ascontiguousarray(filled)))[: len(part)])  # a copy: engines reuse their memory
    return np.concatenate(found)


def _onnxruntime_ways(folder: Path, case: Case) -> list[Way]:
    return [Way(_threads(case), lambda: start_onnxruntime(folder / "model.onnx", case.num_threads, case.batch_size))]


def _openvino_ways(folder: Path, case: Case, precisions: tuple[str, ...]) -> list[Way]:
    """List the ways of OpenVINO: the whole batch at once, or shared among streams of one thread each.

    In 8 bits, what is not quantized runs in fp32 or, by OpenVINO's own choice, in bf16 if the CPU has it.
    """
    streams = [1, case.num_threads] if case.num_threads > 1 and case.batch_size % case.num_threads == 0 else [1]

    def way(num_streams: int, precision: str) -> Way:
        def start() -> Run:
            model = open_openvino(next(path for path in folder.iterdir() if path.suffix in (".onnx", ".xml")))
            shape = (case.batch_size, case.in_channels, case.size_px, case.size_px)
            return start_openvino(model, shape, case.num_threads, precision, num_streams)

        how = counted(num_streams, "stream") + (", latency hint" if num_streams == 1 else "")
        rest = {"f32": ", the rest in fp32", "bf16": ", the rest in bf16"}[precision] if len(precisions) > 1 else ""
        return Way(f"{how}, {_threads(case)}{rest}", start)

    return [way(number, precision) for precision in precisions for number in streams]


def _ncnn_ways(folder: Path, case: Case) -> list[Way]:
    """List the ways of ncnn, which takes one image at a time: all threads for each image, or one thread for each."""
    ncnn = need("ncnn")

    def start(num_threads: int) -> Callable[[np.ndarray], np.ndarray]:
        net = ncnn.Net()
        net.opt.num_threads = num_threads
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(net.opt, option, False)
        if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(str(folder / "model.ncnn.bin")):
            raise PeerError(f"cannot load {case.network}")
        given, wanted = net.input_names()[0], net.output_names()[0]

        def one(image: np.ndarray) -> np.ndarray:
            extractor = net.create_extractor()
            extractor.input(given, ncnn.Mat(image))
            status, logits = extractor.extract(wanted)
            if status:
                raise PeerError(f"cannot run {case.network}: status {status}")
            return np.array(logits)

        return one

    def in_turn() -> Run:
        one = start(case.num_threads)
        return lambda images: np.stack([one(image) for image in images])

    def at_once() -> Run:
        one, pool = start(1), ThreadPoolExecutor(case.num_threads)
        return lambda images: np.stack(list(pool.map(one, images)))

    ways = [Way(f"one image at a time, {_threads(case)}", in_turn)]
    if case.batch_size > 1 and case.num_threads > 1:
        ways.append(Way(f"{case.num_threads} images at a time, {_threads(case)}", at_once))
    return ways


def _mnn_ways(folder: Path, case: Case) -> list[Way]:
    nn, expr = need("MNN.nn"), need("MNN.expr")

    def start() -> Run:
        settings = {"backend": "CPU", "numThread": case.num_threads, "precision": "high"}  # "high" is fp32
        manager = nn.create_runtime_manager((settings,))
        module = nn.load_module_from_file(str(folder / "model.mnn"), [INPUT], [LOGITS], runtime_manager=manager)

        def run(images: np.ndarray) -> np.ndarray:
            given = expr.convert(expr.const(images, list(images.shape), expr.NCHW), expr.NC4HW4)
            return module.forward([given])[0].read()

        return run

    return [Way(_threads(case), start)]


def _opencv_ways(folder: Path, case: Case) -> list[Way]:
    """List the ways of OpenCV's DNN module: since version 5 it has two implementations."""
    cv2 = need("cv2")

    def way(how: str, *implementation: int) -> Way:
        def start() -> Run:
            cv2.setNumThreads(case.num_threads)
            net = cv2.dnn.readNetFromONNX(str(folder / "model.onnx"), *implementation)

            def run(images: np.ndarray) -> np.ndarray:
                net.setInput(images)
                return net.forward()

            return run

        return Way(f"{how}{_threads(case)}", start)

    if not hasattr(cv2.dnn, "ENGINE_NEW"):
        return [way("")]
    return [way("new engine, ", cv2.dnn.ENGINE_NEW), way("classic engine, ", cv2.dnn.ENGINE_CLASSIC)]


def _threads(case: Case) -> str:
    return counted(case.num_threads, "thread")


MODULES = {
    "onnxruntime-int8": ("onnxruntime.quantization",),
    "openvino-bf16": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
    "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN",),
    "opencv": ("cv2",),
}
"""The module of each engine, if it differs from its name. All of them read ONNX, which needs more packages."""

WAYS: dict[str, Callable[[Path, Case], list[Way]]] = {
    "onnxruntime": _onnxruntime_ways,
    "onnxruntime-int8": _onnxruntime_ways,
    "openvino": lambda folder, case: _openvino_ways(folder, case, ("f32",)),
    "openvino-bf16": lambda folder, case: _openvino_ways(folder, case, ("bf16",)),
    "openvino-int8": lambda folder, case: _openvino_ways(
        folder, case, ("f32", "bf16") if BF16_FLAGS & cpu_flags() else ("f32",)
    ),
    "ncnn": _ncnn_ways,
    "mnn": _mnn_ways,
    "opencv": _opencv_ways,
}
"""The ways to run each engine, given the folder of its converted model."""

NOTES = {
    "openvino-int8": " by NNCF",
    "onnxruntime-int8": " by its own quantization",
}
