"""Where a network looks: the class activation map is exact, and it is Grad-CAM at the last map."""

from __future__ import annotations

import pytest
import torch

from wideresnet.networks import create

NETWORKS = ("WRN-10-1", "ResNet-8", "WRN-18-1", "WRN-10-1-B(1,3,1)")


def images_of(batch: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_of_a_map_and_the_bias_are_the_logit(name: str) -> None:
    torch.manual_seed(0)
    network, x = create(name, 5).eval(), images_of()
    labels = torch.tensor([[0, 4], [1, 1], [3, 2]])
    with torch.no_grad():
        maps, logits = network.class_maps(x, labels), network(x)
    assert maps.shape[:2] == (3, 2)
    torch.testing.assert_close(maps.mean((2, 3)) + network.fc.bias[labels], logits.gather(1, labels))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_is_grad_cam_times_the_number_of_places(name: str) -> None:
    """Selvaraju et al. 2017: channels weighted by the mean of the class score's gradient, before the ReLU."""
    torch.manual_seed(0)
    network, x = create(name, 5).eval(), images_of()
    labels = torch.tensor([[2], [0], [4]])
    features = network.last_map(x).detach().requires_grad_()
    score = network.fc(features.mean((2, 3))).gather(1, labels).sum()
    (gradient,) = torch.autograd.grad(score, features)
    grad_cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1)
    places = features.shape[2] * features.shape[3]
    with torch.no_grad():
        torch.testing.assert_close(network.class_maps(x, labels)[:, 0], grad_cam.detach() * places)


def test_the_last_map_is_what_the_network_pools() -> None:
    network, x = create("WRN-10-1", 5).eval(), images_of(side=40)
    with torch.no_grad():
        torch.testing.assert_close(network.last_map(x).mean((2, 3)), network.features(x)["pooled"])
