"""Training: `fit` and what it is made of."""

from wideresnet.training.fit import fit, prepare
from wideresnet.training.interrupt import Interrupted
from wideresnet.training.loop import Diverged
from wideresnet.training.preflight.plan import Plan, make_plan
from wideresnet.training.resolve import recipe_for, resolve_for_data
from wideresnet.training.setup import Job

__all__ = ["Diverged", "Interrupted", "Job", "Plan", "fit", "make_plan", "prepare", "recipe_for", "resolve_for_data"]
