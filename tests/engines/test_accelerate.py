"""`accelerate`: the kernels where they compute what PyTorch would, the plain network everywhere else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from twins import SMALL, a_network, off, step

from wideresnet.base.errors import UsageError
from wideresnet.engines import accelerate, why_no_kernels

pytestmark = pytest.mark.usefixtures("needs_kernels")


def test_parameters_and_mode_are_the_networks() -> None:
    network = a_network().eval()
    fast = accelerate(network)
    assert not fast.training
    assert fast.train() is fast
    assert network.training
    assert all(module.training for module in network.modules())
    network.eval()
    assert not fast.training
    assert list(map(id, fast.parameters())) == list(map(id, network.parameters()))


def test_wrapping_changes_no_mode() -> None:
    network = a_network()
    frozen = [module.eval() for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    accelerate(network)
    assert network.training
    assert not any(norm.training for norm in frozen)


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8).byte(), [1.0]])
def test_a_wrong_input_is_a_usage_error_as_in_the_network(x: Tensor) -> None:
    with pytest.raises(UsageError, match=r"^WRN-10-1: the input"):
        accelerate(a_network())(x)


def test_without_a_compiler_pytorch_computes(no_compiler: str) -> None:
    network, x = a_network(), torch.randn(SMALL)
    expected = copy.deepcopy(network)(x)
    assert why_no_kernels(network, x) == no_compiler
    assert torch.equal(accelerate(network)(x), expected)


def test_whatever_observes_the_forward_pass_sees_pytorchs() -> None:
    network, x = a_network(), torch.randn(SMALL)
    reasons = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    reasons.append(why_no_kernels(network, x))
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        reasons.append(why_no_kernels(network, x))
    with FlopCounterMode(display=False) as counter:
        reasons.append(why_no_kernels(network, x))
        accelerate(network)(x)
    assert counter.get_total_flops() > 1e6
    with forward_ad.dual_level():
        reasons.append(why_no_kernels(network, x))
    assert why_no_kernels(network, x) is None
    assert why_no_kernels(network, x.double()) is not None
    assert why_no_kernels(network, x[:0]) == "there are no images"
    assert why_no_kernels(network, nn.Parameter(x)) is not None
    assert why_no_kernels(network, x.to("meta")) is not None
    assert None not in reasons


def test_hooks_of_the_network_itself_are_called() -> None:
    network, calls = a_network(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    assert "hooks" in (why_no_kernels(network, torch.randn(SMALL)) or "")
    accelerate(network)(torch.randn(SMALL))
    assert calls == [1]


def test_autocast_and_float64_give_the_plain_result() -> None:
    network, x = a_network(), torch.randn(SMALL)
    fast, plain = accelerate(network), copy.deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), plain(x))
    double = copy.deepcopy(network).double()
    assert torch.equal(accelerate(copy.deepcopy(double))(x.double()), double(x.double()))
    with pytest.raises(RuntimeError, match=r"type"):
        accelerate(double)(x)
    assert fast(x[:0].clone()).shape == plain(x[:0].clone()).shape == (0, 10)


def test_gradients_in_evaluation_mode_are_the_plain_ones() -> None:
    network = a_network().eval()
    x = torch.randn(SMALL)
    assert "evaluation mode" in (why_no_kernels(network, x) or "")
    _, found = step(accelerate(copy.deepcopy(network)), x)
    _, expected = step(network, x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_torch_compile_traces_the_plain_pass_in_one_graph() -> None:
    network = a_network().eval()
    fast, x = accelerate(network), torch.randn(SMALL)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of PyTorch advise against it
            traced = torch.jit.trace(fast, x, check_trace=False)
        torch.testing.assert_close(traced(2 * x), network(2 * x))  # type: ignore[operator]


def test_function_transforms_use_the_plain_pass() -> None:
    network = a_network().eval()
    fast, plain = accelerate(network), copy.deepcopy(network)
    x, labels = torch.randn(SMALL), torch.arange(3)

    def gradients(of: nn.Module, training: bool, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        def loss(values: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(of, {**values, **buffers}, (images,)), targets)

        of.train(training)
        parameters = {name: p.detach() for name, p in of.named_parameters()}
        found = torch.func.grad(loss)(parameters, {name: b.clone() for name, b in of.named_buffers()})
        return {name.removeprefix("network."): gradient for name, gradient in found.items()}

    for training in (True, False):
        found, expected = (gradients(of, training, x, labels) for of in (fast, plain))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    each = torch.func.vmap(lambda image, label: gradients(fast, False, image[None], label[None]))(x, labels)
    one = gradients(plain, False, x[:1], labels[:1])
    assert off(each["fc.weight"][0], one["fc.weight"]) < 1e-5
