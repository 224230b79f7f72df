"""A classifier's run: the loop with its step, its evaluation and its record."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from wideresnet.base import progress
from wideresnet.base.format import human_seconds
from wideresnet.base.metrics import MIN_CLASSES_FOR_TOP5, expected_calibration_error, top_k_error
from wideresnet.data import ImageSet
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.distributed.gradients import make_exchange
from wideresnet.engines import optimize
from wideresnet.engines.evaluate import EVALUATION_BATCH, Evaluation, evaluate
from wideresnet.machine.memory import peak_memory_mib
from wideresnet.networks import Network
from wideresnet.spec.files import digest, write_atomic
from wideresnet.spec.record import RunFolder
from wideresnet.training.averaging import average_weights
from wideresnet.training.captured import make_step
from wideresnet.training.configure import evaluates_by_kernels
from wideresnet.training.loop import Diverged, Loop
from wideresnet.training.preflight.plan import Plan
from wideresnet.training.schedules import area_of
from wideresnet.training.setup import Job
from wideresnet.training.step import Meter
from wideresnet.training.timetable import Timetable
from wideresnet.training.track import Tracking
from wideresnet.weights.hub import write_weights

Watch = Callable[[int, float, float], None]
"""Called with the steps done, the epoch's loss so far, and its training error so far in percent."""


class Run(Loop):
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
        super().__init__(job, Meter(job.execution.device), folder, checkpoint_every_s, tracking)
        self.plan, self.watch = plan, watch
        self.schedule = self.timetable = Timetable(
            job.recipe, job.schedule, job.data.feed.num_batches, plan.left_s, plan.evaluation_s
        )
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
        options = job.recipe.optimizer
        self.take_step = make_step(
            job.network, self.forward, job.optimizer, self.meter, job.execution,
            label_smoothing=options.label_smoothing, accumulate=job.recipe.schedule.accumulate,
            clip_grad_norm=options.clip_grad_norm, sam_rho=options.sam_rho, together=self.together,
            class_weights=job.class_weights,
        )  # fmt: skip
        self.evaluated: Evaluation | None = None  # of the last evaluation, if it was in this process

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, which a time budget may change."""
        return self.timetable.epochs

    def progress(self) -> dict[str, Any]:
        """Return the changes that a time budget has made."""
        return {"timetable": self.timetable.to_json()}

    def restore_progress(self, values: dict[str, Any]) -> None:
        """Take them back; a checkpoint from before there were budgets has none."""
        self.timetable.restore(values.get("timetable", {}))

    @property
    def result_network(self) -> Network:
        """The network that would be the result now: the averaged one, if weights are averaged."""
        return self.averaged.module if self.averaged is not None else self.network  # type: ignore[return-value]

    def work(self, epochs: float) -> float:
        """Return the work in the first `epochs` epochs, in those at full size: it grows with the area of images."""
        return area_of(self.timetable.image_scale, epochs)

    def batches(self, epoch: int, first: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch at the scale of its images."""
        return self.data.feed.epoch(epoch, start=first, scale=self.timetable.image_scale(epoch))

    def take(self, images: Tensor, targets: Tensor) -> None:
        """Train on a batch."""
        feed = self.data.feed
        self.take_step(
            images, targets, step=self.step, lr=self.timetable.lr(self.step),
            seed=functools.partial(self.world.seed_step, self.recipe.seed, self.step),
            num_images=feed.images_in(self.step % feed.num_batches),
        )  # fmt: skip

    def look(self) -> dict[str, str]:
        """Return loss and error so far; tell them to whoever watches."""
        loss, error = self.meter.read()
        if self.watch:
            self.watch(self.step, loss, error)
        return {"loss": f"{loss:.3f}", "error": f"{error:.1f} %"}

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
        if number % recipe.feed.eval_every == 0 or number == self.epochs:
            result = self.evaluated = self.evaluate(self.data.validation)
            split = "val" if recipe.feed.holdout else "test"
            record |= {f"{split}_loss": result.loss, f"{split}_error_pct": result.error_pct}
            line += f"  {split} error {result.error_pct:5.2f} %"
        self.write_record(record)
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
                optimize(network, kernels=evaluates_by_kernels(network, execution)),
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
            "epochs": self.epochs,
            "test_error_pct": test.error_pct,
            "test_loss": test.loss,
            "test_ece_pct": expected_calibration_error(test.logits.numpy(), self.data.test.labels),
            "num_test_images": test.num_images,
            "num_train_images": self.data.feed.num_images,
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
