"""A detector's run: the loop of `training` with a detector's step, COCO's mAP and a detector's record."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

from torch import Tensor

from wideresnet.base import progress
from wideresnet.base.format import human_seconds
from wideresnet.detection.evaluate import detect, judge
from wideresnet.detection.plan import DetectionPlan
from wideresnet.detection.setup import DetectionJob
from wideresnet.detection.step import DetectionMeter, train_step
from wideresnet.detection.weights import write_detector
from wideresnet.distributed.gradients import make_exchange
from wideresnet.machine.memory import peak_memory_mib
from wideresnet.spec.detection import TASK, DetectionFolder
from wideresnet.spec.files import digest, write_atomic, write_json
from wideresnet.training.loop import Loop

AP_NAMES = ("ap_pct", "ap50_pct", "ap75_pct", "ap_small_pct", "ap_medium_pct", "ap_large_pct")
"""What the record of an epoch has of an evaluation."""


class DetectionRun(Loop):
    """The state of a run, see `Loop`."""

    fields = ("loss", "rate")

    def __init__(
        self, job: DetectionJob, plan: DetectionPlan, folder: DetectionFolder, checkpoint_every_s: float
    ) -> None:
        super().__init__(job, DetectionMeter(job.execution.device, job.losses), folder, checkpoint_every_s)
        self.plan, self.run = plan, folder
        self.together = None
        if job.world.size > 1:
            self.together = make_exchange(job.network, job.network, device=self.device)
        self.forward = self.together.forward if self.together else job.network
        self.evaluated: dict[str, Any] | None = None
        self.detections: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def take(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        """Train on a batch."""
        train_step(
            self.forward, self.optimizer, images, targets, self.meter,
            step=self.step, lr=self.job.schedule.lr(self.step), clip_grad_norm=self.recipe.clip_grad_norm,
            seed=functools.partial(self.world.seed_step, self.recipe.seed, self.step), together=self.together,
            num_images=self.data.feed.batch_size,
        )  # fmt: skip

    def look(self) -> dict[str, str]:
        """Return the loss so far."""
        return {"loss": f"{sum(self.meter.read().values()):.3f}"}

    def end_epoch(self, epoch: int) -> None:
        """Evaluate if it is time, write the epoch's record, start the next epoch's sums."""
        number, losses = epoch + 1, self.meter.read()
        self.meter.reset()
        loss = sum(losses.values())
        record: dict[str, Any] = {
            "epoch": number, "step": self.step, "lr": self.job.schedule.lr(self.step - 1), "train_loss": loss,
            **losses, "train_s": round(self.train_s, 3),
        }  # fmt: skip
        line = f"epoch {number:>3}  lr {record['lr']:<7.4g} loss {loss:.3f}"
        if number % self.recipe.eval_every == 0 or number == self.recipe.epochs:
            found = self.evaluate()
            record |= {name: found[name] for name in AP_NAMES if name in found}
            line += f"  {self.recipe.eval_on} mAP {found.get('ap_pct', 0):.2f} %  AP50 {found.get('ap50_pct', 0):.2f} %"
        self.write_record(record)
        progress.report(f"{line}  {human_seconds(self.train_s + self.evaluation_s)}")

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the detector as it is now; the same in every process."""
        started, recipe = time.monotonic(), self.recipe
        self.world.copy_first(self.network.buffers())
        self.detections, notes = detect(
            self.network, self.data.evaluated, min_size=recipe.min_size, max_size=recipe.max_size, device=self.device,
            workers=self.data.feed.workers, world=self.world,
            skip_unreadable=recipe.skip_unreadable,
        )  # fmt: skip
        self.notes = notes
        self.evaluated = self.world.agree(judge(self.data.evaluated, self.detections) if self.world.is_first else None)
        self.evaluation_s += time.monotonic() - started
        return self.evaluated  # type: ignore[return-value]

    def finish(self) -> dict[str, Any]:
        """Write weights, detections, their evaluation and the result; checkpoints are no longer needed."""
        self.check_weights()
        found = self.evaluated or self.evaluate()
        recipe, feed = self.recipe, self.data.feed
        result = {
            "task": TASK, "backbone": recipe.backbone, "detector": recipe.detector, "dataset": self.data.name,
            "recipe": recipe.recipe, "split": found["split"], "params": self.plan.params, "epochs": recipe.epochs,
            "num_images": found["num_images"], "num_objects": found["num_objects"],
            **{name: found[name] for name in AP_NAMES if name in found},
            **{name: 0.0 for name in ("ap_pct", "ap50_pct") if name not in found},
            "evaluator": found["evaluator"],
            "seconds": round(self.train_s + self.evaluation_s, 3), "train_s": round(self.train_s, 3),
            "images_per_s": round(self.step * feed.batch_size / max(self.train_s, 1e-9), 2),
            "peak_memory_mib": round(max(peak_memory_mib(self.device), self.plan.peak_before_bytes / 2**20), 1),
            "predicted_memory_mib": round(self.plan.memory_bytes / 2**20, 1),
            "seed": recipe.seed, "device": self.device, "precision": self.job.execution.precision,
            "num_processes": self.world.size, "workers": feed.workers, "num_unreadable": len(feed.unreadable),
            "data_wait_pct": round(100 * feed.waited_s / max(self.train_s, 1e-9), 2),
        }  # fmt: skip
        if self.world.is_first:
            folder = self.run
            digests = write_detector(folder.path, self.job.detector(self.job.network))
            content = json.dumps(self.detections).encode()
            write_atomic(folder.detections, content)
            digests[folder.detections.name] = digest(content)
            notes = [*self.job.data.notes, *self.job.notes, *self.notes]
            digests[folder.evaluation.name] = digest(write_json(folder.evaluation, {**found, "notes": notes}))
            digests[folder.metrics.name] = digest(self.metrics)
            digests[folder.recipe.name] = self.recipe_digest
            folder.write_result(result, digests)
            folder.remove_leftovers()
        return self.world.agree(result)
