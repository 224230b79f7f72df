"""The loop itself: epochs of steps, evaluation, checkpoints, the record."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from wideresnet.base import progress
from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.base.format import human_seconds
from wideresnet.base.metrics import MIN_CLASSES_FOR_TOP5, expected_calibration_error, top_k_error
from wideresnet.data import ImageSet
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.distributed.gradients import make_exchange
from wideresnet.engines import optimize
from wideresnet.engines.evaluate import EVALUATION_BATCH, Evaluation, evaluate
from wideresnet.machine.device import synchronize
from wideresnet.machine.memory import peak_memory_mib, reset_peak_memory
from wideresnet.networks import Network
from wideresnet.spec.files import digest, write_atomic
from wideresnet.spec.record import RunFolder
from wideresnet.spec.result import metrics_line
from wideresnet.training.averaging import average_weights
from wideresnet.training.captured import make_step
from wideresnet.training.interrupt import Interrupted, StopRequest
from wideresnet.training.preflight.plan import Plan
from wideresnet.training.setup import Job
from wideresnet.training.step import Meter
from wideresnet.training.timetable import Timetable
from wideresnet.training.track import Tracking
from wideresnet.weights.checkpoint import Checkpoint, list_checkpoints, newest_checkpoint, save_checkpoint
from wideresnet.weights.hub import write_weights

Watch = Callable[[int, float, float], None]
"""Called with the steps done, the epoch's loss so far, and its training error so far in percent."""

METRICS = "metrics.jsonl"
"""The name in a checkpoint of the records of finished epochs, bytes: a checkpoint has a digest, their file has none."""

LOOK_EVERY_S = 0.5
"""How often the progress is read; on a GPU each time waits for the device."""

log = logging.getLogger(__name__)


class Diverged(WRNError):
    """The loss, the weights or the outputs are not finite. The same recipe and seed would end the same way again."""


class Run:
    """The state of a run: weights, momentum, averaged weights, the step, the epoch's sums, the time so far."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        folder: RunFolder,
        checkpoint_every_s: float,
        watch: Watch | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.job, self.recipe, self.folder, self.plan = job, job.recipe, folder, plan
        self.device, self.world, self.data = job.execution.device, job.world, job.data
        self.network, self.optimizer = job.network, job.optimizer
        self.timetable = Timetable(job.recipe, job.schedule, job.data.feed.num_batches, plan.left_s, plan.evaluation_s)
        self.together = None
        if job.world.size > 1:
            self.together = make_exchange(
                job.forward,
                job.network,
                device=self.device,
                is_compiled=job.execution.compile,
                is_deterministic=job.execution.deterministic,
                skips_blocks=job.recipe.network_options.stochastic_depth is not None,
            )
        self.forward = self.together.forward if self.together else job.forward
        decay = job.recipe.optimizer.ema_decay
        self.averaged = average_weights(job.network, decay) if decay else None
        self.meter = Meter(self.device)
        options = job.recipe.optimizer
        self.take_step = make_step(
            job.network, self.forward, job.optimizer, self.meter, job.execution,
            label_smoothing=options.label_smoothing, accumulate=job.recipe.schedule.accumulate,
            clip_grad_norm=options.clip_grad_norm, sam_rho=options.sam_rho, together=self.together,
            class_weights=job.class_weights,
        )  # fmt: skip
        self.evaluated: Evaluation | None = None  # of the last evaluation, if it was in this process
        self.step = 0
        self.train_s = 0.0
        self.evaluation_s = 0.0
        self.checkpoint_every_s = checkpoint_every_s
        self.watch, self.tracking = watch, tracking
        self.metrics = b""  # the records of finished epochs, as `metrics.jsonl` holds them
        self.recipe_digest = digest(folder.recipe.read_bytes()) if job.world.is_first else ""
        self.saved_at = float("-inf")  # the first checkpoint follows the first step, which does not wait for it

    @property
    def result_network(self) -> Network:
        """The network that would be the result now: the averaged one, if weights are averaged."""
        return self.averaged.module if self.averaged is not None else self.network  # type: ignore[return-value]

    def train(self, resume: bool) -> dict[str, Any]:
        """Train to the last epoch, from the newest checkpoint if `resume`; return what `result.json` holds."""
        feed, timetable = self.data.feed, self.timetable
        total = timetable.epochs * feed.num_batches
        self.network.train()
        cuda = [torch.cuda.current_device()] if self.device == "cuda" else []
        with (
            StopRequest() as stop,
            torch.random.fork_rng(devices=cuda),
            progress.task("training", total=total, fields=("loss", "error", "rate")) as task,
            feed.running(),
        ):
            if resume:
                self.restore()
            begun = self.step
            while self.step < (total := timetable.epochs * feed.num_batches):
                epoch, first = divmod(self.step, feed.num_batches)
                task.update(description=f"epoch {epoch + 1}/{timetable.epochs}", completed=self.step, total=total)
                started, shown, first_step = time.monotonic(), 0.0, self.step
                before = self.train_s
                for images, labels in feed.epoch(epoch, start=first, scale=timetable.image_scale(epoch)):
                    if timetable.resets_momentum(self.step):
                        self.optimizer.state.clear()
                    self.take_step(
                        images, labels, step=self.step, lr=timetable.lr(self.step),
                        seed=functools.partial(self.world.seed_step, self.recipe.seed, self.step),
                        num_images=feed.images_in(self.step % feed.num_batches),
                    )  # fmt: skip
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
                        loss, error = self.meter.read()
                        rate = (self.step - first_step) * feed.batch_size / max(now - started, 1e-9)
                        task.update(
                            completed=self.step,
                            loss=f"{loss:.3f}",
                            error=f"{error:.1f} %",
                            rate=f"{rate:,.0f} images/s",
                        )
                        if self.watch:
                            self.watch(self.step, loss, error)
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
                task.update(completed=self.step)
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
            f"lr {self.timetable.lr(failed):g}: stopped before the update; {self.state_before()}; start again "
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
                f"the weights are not finite after step {self.step:,}, lr {self.timetable.lr(self.step - 1):g}: "
                f"stopped; {self.state_before()}; start again with a lower lr="
            )

    def end_epoch(self, epoch: int) -> None:
        """Evaluate, write the epoch's record, start the next epoch's sums."""
        number, recipe = epoch + 1, self.recipe
        loss, error = self.meter.read()
        self.meter.reset()
        epochs = self.timetable.revised(number, self.train_s, self.evaluation_s)
        if self.timetable.left_s is not None:
            epochs = self.world.agree(epochs)
        record = {
            "epoch": number,
            "step": self.step,
            "lr": self.timetable.lr(self.step - 1),
            "image_scale": self.timetable.image_scale(epoch),
            "train_loss": loss,
            "train_error_pct": error,
            "train_s": round(self.train_s, 3),
        }
        line = f"epoch {number:>3}  lr {record['lr']:<7.4g} loss {loss:.3f}  train error {error:5.2f} %"
        if number % recipe.feed.eval_every == 0 or number == self.timetable.epochs:
            result = self.evaluated = self.evaluate(self.data.validation)
            split = "val" if recipe.feed.holdout else "test"
            record |= {f"{split}_loss": result.loss, f"{split}_error_pct": result.error_pct}
            line += f"  {split} error {result.error_pct:5.2f} %"
        if self.world.is_first:
            added = metrics_line(record)
            self.metrics += added
            self.folder.append_metrics(added)
            if self.tracking:
                self.tracking.update()
        if told := self.timetable.revise(number, epochs):
            progress.report(told)
        progress.report(f"{line}  {human_seconds(self.train_s + self.evaluation_s)}")

    def evaluate(self, images: ImageSet) -> Evaluation:
        """Evaluate the network that would be the result now."""
        started = time.monotonic()
        network, execution = self.result_network, self.job.execution
        self.world.copy_first(network.buffers())  # BN's running statistics: without sync_bn each process has its own
        with progress.task("evaluating", total=len(images)) as task:
            result = evaluate(
                optimize(network, kernels=execution.kernels == "winograd"),
                images.images,
                images.labels,
                self.data.preprocessing,
                device=self.device,
                precision=execution.precision,
                batch_size=min(EVALUATION_BATCH[self.device], 2 * self.plan.part_images),  # less memory than a step
                advance=lambda num: task.update(advance=num * self.world.size),
                world=self.world,
            )
        self.evaluation_s += time.monotonic() - started
        if not math.isfinite(result.loss):
            raise Diverged(
                f"the network's outputs on {len(images):,} images are not finite after step {self.step:,}: stopped; "
                f"{self.state_before()}; start again with a lower lr="
            )
        return result

    def finish(self) -> dict[str, Any]:
        """Write weights, predictions on the test set and the result; checkpoints are no longer needed."""
        recipe, data = self.recipe, self.data
        self.check_weights()
        last = None if recipe.feed.holdout else self.evaluated
        test = last or self.evaluate(self.data.test)
        network = self.result_network
        result = {
            "network": recipe.network,
            "dataset": self.data.name,
            "recipe": recipe.name,
            "params": sum(p.numel() for p in network.parameters()),
            "epochs": self.timetable.epochs,
            "test_error_pct": test.error_pct,
            "test_loss": test.loss,
            "test_ece_pct": expected_calibration_error(test.logits.numpy(), self.data.test.labels),
            "num_test_images": test.num_images,
            "seconds": round(self.train_s + self.evaluation_s, 3),
            "train_s": round(self.train_s, 3),
            "images_per_s": round(self.step * self.data.feed.batch_size / max(self.train_s, 1e-9), 1),
            "peak_memory_mib": round(max(peak_memory_mib(self.device), self.plan.peak_before_bytes / 2**20), 1),
            "predicted_memory_mib": round(self.plan.memory_bytes / 2**20, 1),
            "seed": recipe.seed,
            "device": self.device,
            "precision": self.job.execution.precision,
            "num_processes": self.world.size,
            **self.feed_result(),
            **self.timetable.result(),
        }
        if len(self.data.class_names) >= MIN_CLASSES_FOR_TOP5:
            result["test_top5_error_pct"] = top_k_error(test.logits.numpy(), self.data.test.labels, 5)
        if self.world.is_first:
            folder, predictions = (
                self.folder,
                save({"logits": test.logits, "labels": torch.from_numpy(self.data.test.labels)}),
            )
            digests = write_weights(folder.path, data.weights(network))
            write_atomic(folder.predictions, predictions)
            digests[folder.predictions.name] = digest(predictions)
            digests[folder.metrics.name] = digest(self.metrics)
            digests[folder.recipe.name] = self.recipe_digest
            folder.write_result(result, digests)
            folder.remove_leftovers()
        return self.world.agree(result)

    def feed_result(self) -> dict[str, Any]:
        """Return the result's fields about a stream: the share of the training time that steps waited for images."""
        feed = self.data.feed
        if not isinstance(feed, StreamFeed):
            return {}
        return {
            "data_wait_pct": round(100 * feed.waited_s / max(self.train_s, 1e-9), 2),
            "workers": feed.workers,
            "num_unreadable": len(feed.unreadable),
        }

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
            "timetable": self.timetable.to_json(),
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
        self.timetable.restore(found.progress.get("timetable", {}))
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
