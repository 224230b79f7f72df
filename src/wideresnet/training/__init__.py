"""Training: the loop, its steps and schedules, checkpoints, evaluation."""

from wideresnet.engines.evaluate import Evaluation, evaluate
from wideresnet.training.fit import fit
from wideresnet.training.interrupt import Interrupted
from wideresnet.training.preflight.plan import Plan, make_plan
from wideresnet.training.setup import Job, prepare, resolve_for_data

__all__ = [
    "Evaluation",
    "Interrupted",
    "Job",
    "Plan",
    "evaluate",
    "fit",
    "make_plan",
    "prepare",
    "resolve_for_data",
]
