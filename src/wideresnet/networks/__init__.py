"""Wide residual networks and the residual networks that the paper compares them with."""

from __future__ import annotations

from wideresnet.networks.build import create
from wideresnet.networks.cost import Cost, StageCost, cost
from wideresnet.networks.models import Network

__all__ = ["Cost", "Network", "StageCost", "cost", "create"]
