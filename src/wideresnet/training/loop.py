"""The loop itself: epochs of steps, evaluation, checkpoints, the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from wideresnet.base import progress
from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.base.format import human_number
from wideresnet.machine.device import synchronize
from wideresnet.machine.memory import reset_peak_memory
from wideresnet.spec.files import digest
from wideresnet.spec.record import RunFolder
from wideresnet.spec.result import metrics_line
from wideresnet.training.interrupt import Interrupted, StopRequest
from wideresnet.training.track import Tracking
from wideresnet.weights.checkpoint import Checkpoint, list_checkpoints, newest_checkpoint, save_checkpoint

METRICS = "metrics.jsonl"
"""The name in a checkpoint of the records of finished epochs, bytes: a checkpoint has a digest, their file has none."""

LOOK_EVERY_S = 0.5
"""How often the progress is read; on a GPU each time waits for the device."""

log = logging.getLogger(__name__)


class Diverged(WRNError):
    """The loss, the weights or the outputs are not finite. The same recipe and seed would end the same way again."""


class Loop:
    """Epochs of steps, with checkpoints, the record and everything that makes a run resumable.

    What is trained is for a subclass to say: `take`, `look`, `end_epoch` and `finish`.

    Args:
        job: with `recipe`, `execution`, `data` (`feed` and `digest`), `network`, `optimizer`, `schedule` and `world`.
        meter: the sums over the current epoch, see `step.Meter`.
        folder: of the run.
        checkpoint_every_s: seconds of work that a kill may cost.
        tracking: what is given every epoch.
    """

    fields: tuple[str, ...] = ("loss", "error", "rate")
    """What is shown beside the progress."""

    def __init__(
        self, job: Any, meter: Any, folder: RunFolder, checkpoint_every_s: float, tracking: Tracking | None = None
    ) -> None:
        self.job, self.recipe, self.folder, self.meter = job, job.recipe, folder, meter
        self.device, self.world, self.data = job.execution.device, job.world, job.data
        self.network, self.optimizer = job.network, job.optimizer
        self.schedule: Any = job.schedule
        self.averaged: AveragedModel | None = None
        self.step = 0
        self.train_s = 0.0
        self.evaluation_s = 0.0
        self.checkpoint_every_s = checkpoint_every_s
        self.tracking = tracking
        self.metrics = b""  # the records of finished epochs, as `metrics.jsonl` holds them
        self.recipe_digest = digest(folder.recipe.read_bytes()) if job.world.is_first else ""
        self.saved_at = float("-inf")  # the first checkpoint follows the first step, which does not wait for it

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.recipe.schedule.epochs

    def work(self, epochs: float) -> float:
        """Return the work in the first `epochs` epochs, in any unit: its share of the whole tells the time left."""
        return epochs

    def batches(self, epoch: int, first: int) -> Iterable[tuple[Any, Any]]:
        """Yield the batches of an epoch from one on, both counted from 0."""
        return self.data.feed.epoch(epoch, start=first)

    def take(self, images: Any, targets: Any) -> None:
        """Train on a batch, as step `self.step`."""
        raise NotImplementedError

    def look(self) -> dict[str, str]:
        """Return what to show of the epoch so far, by the names of `fields` without the rate; may wait for a GPU."""
        raise NotImplementedError

    def end_epoch(self, epoch: int) -> None:
        """Evaluate, write the epoch's record, start the next epoch's sums."""
        raise NotImplementedError

    def finish(self) -> dict[str, Any]:
        """Write what the run leaves, and return the content of `result.json`."""
        raise NotImplementedError

    def progress(self) -> dict[str, Any]:
        """Return what else a checkpoint is to hold, values for JSON."""
        return {}

    def restore_progress(self, values: dict[str, Any]) -> None:
        """Take back what `progress` returned, among other values of the checkpoint."""

    def write_record(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch to `metrics.jsonl`, in the first process."""
        if self.world.is_first:
            added = metrics_line(record)
            self.metrics += added
            self.folder.append_metrics(added)
            if self.tracking:
                self.tracking.update()

    def train(self, resume: bool) -> dict[str, Any]:
        """Train to the last epoch, from the newest checkpoint if `resume`; return what `result.json` holds."""
        feed = self.data.feed
        self.network.train()
        cuda = [torch.cuda.current_device()] if self.device == "cuda" else []
        with (
            StopRequest() as stop,
            torch.random.fork_rng(devices=cuda),
            progress.task("training", total=self.work(self.epochs), fields=self.fields) as task,
            feed.running(),
        ):
            if resume:
                self.restore()
            begun = self.step
            while self.step < self.epochs * feed.num_batches:
                epoch, first = divmod(self.step, feed.num_batches)
                task.update(
                    description=f"epoch {epoch + 1}/{self.epochs}",
                    completed=self.work(self.step / feed.num_batches),
                    total=self.work(self.epochs),
                )
                started, shown, first_step = time.monotonic(), 0.0, self.step
                before = self.train_s
                for images, labels in self.batches(epoch, first):
                    if self.schedule.resets_momentum(self.step):
                        self.optimizer.state.clear()
                    self.take(images, labels)
                    self.step += 1
                    if self.step == begun + 1 and self.device == "cuda":
                        reset_peak_memory(self.device)  # without what cuDNN's search took, as in the plan
                    if self.averaged is not None:
                        self.averaged.update_parameters(self.network)
                    now = time.monotonic()
                    due = self.world.is_first and now - self.saved_at > self.checkpoint_every_s
                    look = self.world.is_first and (now - shown > LOOK_EVERY_S or self.device == "cpu" or due)
                    stopping, look = self.world.any_of(stop.asked, look)
                    if look or stopping:
                        self.check_finite()  # reads from the device, so on a GPU only now and then
                        self.train_s = before + now - started
                    if now - shown > LOOK_EVERY_S:
                        shown = now
                        rate = (self.step - first_step) * feed.batch_size / max(now - started, 1e-9)
                        texts: dict[str, Any] = {"rate": f"{human_number(rate)} images/s", **self.look()}
                        task.update(completed=self.work(self.step / feed.num_batches), **texts)
                    if stopping:
                        self.save()
                        self.world.meet()  # no process may report that all is saved before it is
                        raise Interrupted(
                            f"stopped after step {self.step:,}; everything is saved; continue with resume=True"
                        )
                    if due:
                        self.save()
                synchronize(self.device)
                self.check_finite()
                self.train_s = before + time.monotonic() - started
                task.update(completed=self.work(epoch + 1))
                self.end_epoch(epoch)
            return self.finish()

    def check_finite(self) -> None:
        """Stop a run whose loss is not finite; no update was made since, and the last checkpoint is from before."""
        failed = int(self.meter.failed_step)
        if failed < 0:
            return
        epoch, within = divmod(failed, self.data.feed.num_batches)
        raise Diverged(
            f"the loss is not finite at epoch {epoch + 1}, step {within + 1} of {self.data.feed.num_batches}, "
            f"lr {self.schedule.lr(failed):g}: stopped before the update; {self.state_before()}; start again "
            "with a lower lr= (or precision='fp32')"
        )

    def state_before(self) -> str:
        """Say where the state before a failure is."""
        place = self.folder.checkpoint
        return f"the state from before is in {place}" if list_checkpoints(place) else "nothing had been trained yet"

    def check_weights(self) -> None:
        """Refuse to keep weights that are not finite: a finite loss can have gradients that are not."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            raise Diverged(
                f"the weights are not finite after step {self.step:,}, lr {self.schedule.lr(self.step - 1):g}: "
                f"stopped; {self.state_before()}; start again with a lower lr="
            )

    def save(self) -> None:
        """Write a checkpoint of everything that decides the rest of the run; the first process's, for all."""
        if not self.world.is_first:
            return
        self.check_weights()
        tensors: dict[str, Tensor] = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            if (momentum := self.optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None:
                tensors[f"momentum.{name}"] = momentum
        if self.averaged is not None:
            tensors |= {f"averaged.{k}": v for k, v in self.averaged.module.state_dict().items()}
        tensors[METRICS] = torch.from_numpy(np.frombuffer(self.metrics, np.uint8).copy())
        values = {
            "meter": self.meter.to_json(),
            "train_s": self.train_s,
            "evaluation_s": self.evaluation_s,
            "data": self.data.digest,
            "recipe": self.recipe_digest,
            "feed": self.data.feed.progress(),
            **self.progress(),
        }
        save_checkpoint(self.folder.checkpoint, Checkpoint(self.step, tensors, values))
        self.folder.forget_replaced()
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Load the newest whole checkpoint."""
        with self.world.first_alone():  # it sets damaged ones aside, so that all find the same
            found, damaged = newest_checkpoint(self.folder.checkpoint)
        for sentence in damaged:
            log.warning(sentence)
        if found is None:  # killed before the first checkpoint: the run starts over, its weights a function of the seed
            if self.world.is_first and self.folder.metrics.is_file():
                self.folder.write_metrics(b"")
            return
        if METRICS not in found.tensors:
            raise UsageError(
                f"resume=True: the checkpoints in {self.folder.checkpoint} are of an older version of this package; "
                "continue the run with that version, or start a new run"
            )
        if self.world.is_first and found.progress["recipe"] != self.recipe_digest:
            raise DataError(
                f"{self.folder.recipe}: is not the recipe that this run began with, so it was damaged or changed; put "
                "the original back, or start a new run"
            )
        if found.progress["data"] != self.data.digest:
            raise UsageError(
                f"resume=True: {self.recipe.data} no longer holds the images that the run in {self.folder.path} began "
                "with; put them back, or start a new run"
            )
        self.network.load_state_dict(found.part("network"))
        momentum = found.part("momentum")
        for name, parameter in self.network.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter, requires_grad=False).copy_(momentum[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        if self.averaged is not None:
            self.averaged.module.load_state_dict(found.part("averaged"))
            self.averaged.n_averaged.fill_(found.step + 1)  # the initial weights count
        self.saved_at = time.monotonic()
        self.meter.restore(found.progress["meter"])
        self.step = found.step
        self.restore_progress(found.progress)
        if values := found.progress.get("feed"):
            self.data.feed.restore(values)
        self.train_s, self.evaluation_s = found.progress["train_s"], found.progress["evaluation_s"]
        epochs_done, within = divmod(self.step, self.data.feed.num_batches)
        self.metrics = found.tensors[METRICS].numpy().tobytes()
        if self.world.is_first:
            self.restore_metrics()
        progress.report(f"resumed from step {self.step:,}")
        if within == 0 and self.meter.num_images > 0:  # stopped between an epoch's last step and its record
            self.end_epoch(epochs_done - 1)

    def restore_metrics(self) -> None:
        """Write the checkpoint's records, whatever has happened to their file; later epochs are trained again."""
        file, num_records = self.folder.metrics, self.metrics.count(b"\n")
        if not (file.read_bytes() if file.is_file() else b"").startswith(self.metrics):
            log.warning(f"{file}: was damaged; its {num_records} records are restored from a checkpoint")
        if self.metrics or file.is_file():
            self.folder.write_metrics(self.metrics)
