"""How much memory a run will take, from the peaks of real steps on a few images, and what is refused for it."""

from __future__ import annotations

from dataclasses import dataclass

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_bytes

HEAP_SHARES = {"pytorch": (1.0, 1.0, 1.2), "winograd": (1.2, 1.3, 2.0)}
"""Bounds on an image's memory as a multiple of what autograd keeps of it: the least; the most if the weights are larger
than that; the most otherwise. The kernels keep half as much, so temporary maps count for more. Own measurements on
glibc's heap: PyTorch 1.1 to 1.3; the kernels 1.2 (WRN-28-10, 40-4), 1.5 (40-2), 1.8 (16-8), 2.0 (16-4)."""


@dataclass(frozen=True)
class Memory:
    """A run's memory as a line over the images that are computed at once, and what is available.

    Attributes:
        fixed_bytes: without any image: the process or PyTorch's tensors, data, weights, gradients, momentum, averages.
        image_bytes: for each image in a part of the batch.
        floor_bytes: the peak of everything else: loading the data, writing a checkpoint.
        in_use_bytes: held before the first step.
        available_bytes: available in addition; 0 if the system does not say.
    """

    fixed_bytes: int
    image_bytes: float
    floor_bytes: int
    in_use_bytes: int
    available_bytes: int

    def peak_bytes(self, num_images: int) -> int:
        """Return the expected peak with this many images at once."""
        return max(self.floor_bytes, round(self.fixed_bytes + self.image_bytes * num_images))

    def fits(self, num_images: int) -> bool:
        """Tell whether that peak fits; True if the system does not say what is available."""
        return not self.available_bytes or self.peak_bytes(num_images) <= self.in_use_bytes + self.available_bytes

    def most_images(self, extra_bytes: int = 0) -> int:
        """Return how many images at once fit in addition to `extra_bytes`; below 1 if none does."""
        left = self.in_use_bytes + self.available_bytes - self.fixed_bytes - extra_bytes
        return int(left / max(self.image_bytes, 1.0))

    def check(
        self, batch_size: int, accumulate: int, gradient_bytes: int, *, processes: int = 1, resumed: bool = False
    ) -> None:
        """Refuse a batch that cannot fit.

        Args:
            batch_size: images per step.
            accumulate: parts in which they are computed.
            gradient_bytes: of the gradients, which stay in memory from part to part.
            processes: that share the batch.
            resumed: the run has begun, so its batch and parts cannot change.

        Raises:
            UsageError: naming the batch, its memory, what is available, and the largest that fits.
        """
        share = ceil_div(batch_size, processes)
        part = ceil_div(share, accumulate)
        if self.fits(part):
            return
        needed, free = (human_bytes(n) for n in (self.peak_bytes(part) - self.in_use_bytes, self.available_bytes))
        in_parts = f" in {accumulate} parts" if accumulate > 1 else ""
        in_parts += f" shared by {processes} processes" if processes > 1 else ""
        refusal = f"batch_size={batch_size}{in_parts}: needs {needed} more memory, {free} is available"
        if resumed:
            raise UsageError(
                f"{refusal}, and a run keeps its batch; free some memory, or resume on a machine with more"
            )
        most, most_of_part = self.most_images(), self.most_images(gradient_bytes if accumulate == 1 else 0)
        if not self.fits(1):
            raise UsageError(f"{refusal}, too little for one image; use a smaller network or image_size=")
        largest = most * accumulate * processes
        fix = f"the largest that fits is {largest}: use batch_size={largest}"
        if most_of_part > 0:
            fix += f", or keep the batch with accumulate={ceil_div(share, most_of_part)}"
        raise UsageError(f"{refusal}; {fix}")


def fit_line(
    small: tuple[int, int], large: tuple[int, int], kept_image_bytes: float, weights_bytes: int, kernels: str
) -> tuple[int, float]:
    """Return the line through two measured peaks: (bytes without any image, bytes per image).

    An image takes no less than autograd keeps of it, and not much more: within these bounds the slope is that of the
    two peaks. A few images among large weights fit into room that gradients leave, so there the slope is what is kept.
    The line goes through the larger peak.

    Args:
        small, large: (images, peak in bytes).
        kept_image_bytes: what autograd keeps of an image.
        weights_bytes: of the network.
        kernels: "winograd" or "pytorch".
    """
    (few, low), (many, high) = small, large
    slope = (high - low) / max(1, many - few)
    least, most_among_weights, most = HEAP_SHARES[kernels]
    share = most if kept_image_bytes * many > weights_bytes else most_among_weights
    slope = min(max(slope, least * kept_image_bytes), share * kept_image_bytes)
    return round(high - slope * many), slope
