from __future__ import annotations

from typing import Any

from wideresnet.report.environment import hardware_text, torch_text

ENV: dict[str, Any] = {"gpu": None, "cpu": "a CPU", "cpu_capability": "AVX2", "num_threads": 2, "torch": "2.11.0+cpu"}


def test_a_cpu_is_named_with_its_threads_and_a_gpu_alone() -> None:
    assert hardware_text(ENV) == "2 threads of a CPU (AVX2)"
    assert hardware_text({**ENV, "num_threads": 1}).startswith("1 thread of")
    assert hardware_text({**ENV, "gpu": "a GPU"}) == "a GPU"


def test_the_build_of_pytorch_is_left_out() -> None:
    assert torch_text(ENV) == "torch 2.11.0"
