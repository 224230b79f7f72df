"""The grammar of network names: what `WRN-28-10` and its relatives mean, in numbers that a builder can use.

`parse` reads a name in any common spelling, `str` writes it canonically; given the family the two are inverse.
Sources: Wide Residual Networks (Zagoruyko & Komodakis, arXiv 1605.07146v4), Tables 1-8; He et al. 2016a
(arXiv 1512.03385) for ResNet; He et al. 2016b (arXiv 1603.05027) for PreActResNet; Xie et al. 2017
(arXiv 1611.05431) for ResNeXt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from wideresnet.base.errors import UsageError
from wideresnet.base.format import nearest
from wideresnet.spec.catalog import CATALOG
from wideresnet.spec.spellings import to_grammar

FAMILIES = ("cifar", "imagenet")  # networks for 32x32 images (three groups), for 224x224 images (four groups)

# Blocks of each group by depth: He et al. 2016a, Table 1; 200 from He et al. 2016b and fb.resnet.torch.
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
BASIC_DEPTHS = (18, 34)
BOTTLENECK_DEPTHS = (50, 101, 152)
RESNEXT = ((50, 32, 4), (101, 32, 8), (101, 64, 4))  # depth, cardinality, base width: those with public weights

MAX_LENGTH = 64  # of a name, in characters
MAX_DEPTH, MAX_WIDTH = 4_000, 100  # far beyond anything published: a larger number is a typing error
MAX_BLOCK_CONVS = 4_000  # in all blocks together; ResNet-1202 has 1,200, and each costs a millisecond to build
MAX_DEEPENING = 4  # Table 3 ends at l = 4
LEGAL_KERNELS = (1, 3, 5, 7)  # odd, so that a convolution keeps the size of the map; the paper has 1 and 3
MAX_CONVS = 8  # in a block; the paper has 4
MAX_AMBIGUOUS_WIDTH = 3  # Table 7 ends at k = 3: a wider WRN-34-k was never an ImageNet network
FIRST_BOTTLENECK_DEPTH = 164  # He et al. 2016b: 110 is basic (1.7M), 164 and 1001 are bottlenecks

_PREFIXES = {"wrn": "WRN", "resnet": "ResNet", "preact": "PreActResNet", "resnext": "ResNeXt"}
_GRAMMAR = "WRN-n-k, WRN-n-k-B(3,1,3), WRN-n-k-l3, WRN-50-2-bottleneck, ResNet-n, PreActResNet-n, ResNeXt-50-32x4d"


@dataclass(frozen=True)
class NetworkName:
    """A network as its name describes it.

    Attributes:
        kind: "wrn", "resnet", "preact" (pre-activation ResNet) or "resnext".
        family: "cifar" (three groups of 16, 32, 64 channels) or "imagenet" (four groups of 64, 128, 256, 512).
        depth: n as in the name; `depth_meaning` says what it counts.
        num_blocks: residual blocks in each group.
        kernels: kernel size of each convolution of a block, in order.
        width: widening factor k.
        bottleneck: blocks of 1x1, 3x3, 1x1 with four times the channels at the end; only the inner ones are widened.
        literal_depth: the name has the ending -l, with the depth of Table 3; without it the depth is Table 2's.
        cardinality: groups of the 3x3 convolution of a ResNeXt block.
        base_width: channels of each of those groups in the first stage.
    """

    kind: str
    family: str
    depth: int
    num_blocks: tuple[int, ...]
    kernels: tuple[int, ...] = (3, 3)
    width: float = 1.0
    bottleneck: bool = False
    literal_depth: bool = False
    cardinality: int = 1
    base_width: int = 64

    def __str__(self) -> str:
        """Return the canonical name, which `parse` reads back given the family."""
        prefix = f"{_PREFIXES[self.kind]}-{self.depth}"
        if self.kind == "wrn":
            ending = "-bottleneck" if self.bottleneck else _ending(self.kernels, self.literal_depth)
            return f"{prefix}-{_width_text(self.width)}{ending}"
        if self.kind == "resnext":
            return f"{prefix}-{self.cardinality}x{self.base_width}d"
        if self.kind == "preact" and self.bottleneck != _is_preact_bottleneck(self.depth, self.family):
            return prefix + ("-bottleneck" if self.bottleneck else "-basic")
        return prefix

    @property
    def convs_per_block(self) -> int:
        """Number of convolutions in a block's residual branch: the deepening factor l."""
        return len(self.kernels)

    @property
    def preactivation(self) -> bool:
        """Whether normalization and activation precede each convolution (He et al. 2016b) or follow it (2016a)."""
        return self.kind == "preact" or (self.kind == "wrn" and self.family == "cifar")

    @property
    def stem_channels(self) -> int:
        """Channels of the first convolution, which is never widened."""
        return 16 if self.family == "cifar" else 64

    @property
    def group_widths(self) -> tuple[tuple[int, ...], ...]:
        """Number of output channels of each convolution of a block, for each group."""
        bases = [self.stem_channels * 2**g for g in range(len(self.num_blocks))]
        if not self.bottleneck:
            return tuple((round(base * self.width),) * len(self.kernels) for base in bases)
        # ResNeXt: 32x4d has 32 * 4 = 128 inner channels in the first group, where ResNet-50 has 64
        inner = [round(base * self.width * self.base_width / 64) * self.cardinality for base in bases]
        return tuple((width, width, 4 * base) for width, base in zip(inner, bases, strict=True))

    @property
    def num_block_weights(self) -> int:
        """Number of weights of the convolutions in the residual branches: nearly all parameters of the network."""
        total, channels = 0, self.stem_channels
        for blocks, widths in zip(self.num_blocks, self.group_widths, strict=True):
            for inputs, repeats in ((channels, 1), (widths[-1], blocks - 1)):
                pairs = zip((inputs, *widths), widths, self.kernels, strict=False)
                grouped = (a * b * k * k // (self.cardinality if k == 3 else 1) for a, b, k in pairs)
                total += repeats * sum(grouped)
            channels = widths[-1]
        return total

    @property
    def depth_meaning(self) -> str:
        """One sentence: what the depth in this name counts."""
        n, each, convs, blocks = self.depth, self.num_blocks[0], len(self.kernels), sum(self.num_blocks)
        counted = f"the first convolution, {convs} in each of {blocks} blocks, and"
        if self.kind != "wrn" or self.family == "imagenet":
            formula = "" if self.family == "imagenet" else f" = {3 * convs}N + 2, N = {each}"
            return f"depth {n}{formula}: {counted} the linear layer; projections are not counted"
        if self.kernels == (3, 3) or self.literal_depth:
            formula = f"3Nl + 4, l = {convs}, N = {each} (Table 3)" if convs != 2 else f"6N + 4, N = {each}"
            # a projection widens a group's first block; with k = 1 the first group is no wider than the stem
            projections = "3 projections" + (" (really 2: k = 1 needs none in the first)" if self.width == 1 else "")
            return f"depth {n} = {formula}: {counted} {projections}; the linear layer is not counted"
        return (
            f"depth {n} is Table 2's label, N = (n - 4) / 6 = {each} for every kind of block: "
            f"really {blocks * convs} convolutions in {blocks} blocks, plus the first one and the projections"
        )


def parse(name: str, family: str | None = None) -> NetworkName:
    """Read a network name.

    Common spellings are accepted: case does not matter; `_`, a blank or nothing can stand for a hyphen; `x` can
    separate depth and width; `WideResNet` means WRN; `B313` means B(3,1,3). `wide_resnet50_2` is torchvision's name
    of WRN-50-2-bottleneck.

    `WRN-34-k` names a 32x32 network (34 = 6N + 4) and one of Table 7's ImageNet networks. Without a family it
    is an error for k <= 3, and the 32x32 network above, which is what WRN-34-10 means in the literature.
    `ResNet-50` and its relatives are the ImageNet networks unless the family says otherwise.

    Args:
        name: e.g. "WRN-28-10", "wrn_28_10" or "WRN-40-2-B(3,1,3)".
        family: "cifar" or "imagenet" to decide between two readings; None lets the name decide.

    Returns:
        The network; `str` of it is the canonical name, and `parse(str(network), network.family) == network`.

    Raises:
        UsageError: there is no such network; the message names the rule and the nearest legal names.
    """
    text = _checked_text(name)
    _check_family(family)
    network = _read(text, family)
    if network is None:
        raise UsageError(f"{_shown(text)} is not a network name ({_GRAMMAR}){_suggestion(text)}")
    if (convs := sum(network.num_blocks) * network.convs_per_block) > MAX_BLOCK_CONVS:
        raise UsageError(f"{text}: {convs:,} convolutions in its blocks, at most {MAX_BLOCK_CONVS:,} are allowed")
    return network


def is_ambiguous(name: str) -> bool:
    """Tell whether a name is legal in both families and needs `family=`: WRN-34-k with k <= 3, as in Table 7."""
    match = re.fullmatch(r"wrn-0*34-([0-9]+(?:\.[0-9]+)?)", to_grammar(_checked_text(name)) or "")
    return match is not None and 0 < Fraction(match[1]) <= MAX_AMBIGUOUS_WIDTH


def list_networks(family: str | None = None) -> tuple[str, ...]:
    """List canonical names of the networks that the paper reports or compares with, and of some much used since.

    Args:
        family: "cifar" or "imagenet" for those networks alone; None for both.

    Returns:
        Names without repetition. A name that both families have, such as WRN-34-2, appears in the list of each, and
        once in the list of both; it needs its family to be built, so `for family in FAMILIES: for name in
        list_networks(family): create(name, family=family)` visits every network.
    """
    _check_family(family)
    return CATALOG[family] if family else tuple(dict.fromkeys(CATALOG["cifar"] + CATALOG["imagenet"]))


def _check_family(family: str | None) -> None:
    if family is not None and family not in FAMILIES:
        raise UsageError(f"family={_shown(family)}: {nearest(str(family), FAMILIES)}")


def _read(text: str, family: str | None) -> NetworkName | None:
    """Return the network of a name; None if it looks like no network's, an error if a number in it is illegal.

    Here and below `text` is what the user wrote, for messages; what is read is the grammar's form of it.
    """
    match = re.fullmatch(r"(wrn|resnet|preactresnet|resnext)-([0-9]+)(.*)", to_grammar(text) or "")
    if match is None:
        return None
    kind, depth, rest = match[1], int(match[2]), match[3]
    if depth > MAX_DEPTH:
        raise UsageError(f"{text}: depth must be at most {MAX_DEPTH}")
    if kind == "wrn":
        return _read_wrn(text, depth, rest, family)
    if kind == "resnext":
        return _read_resnext(text, depth, rest, family)
    return _read_resnet(text, "resnet" if kind == "resnet" else "preact", depth, rest, family)


def _read_wrn(text: str, depth: int, rest: str, family: str | None) -> NetworkName | None:
    if not rest:
        raise UsageError(f"{text}: the widening factor k is missing; write WRN-n-k, e.g. WRN-{depth}-10")
    match = re.fullmatch(r"-([0-9]+(?:\.[0-9]+)?)(-.*)?", rest)
    if match is None:
        return None
    k, ending = match[1], match[2] or ""
    if ending == "-bottleneck":
        _check_imagenet(text, family, depth, BOTTLENECK_DEPTHS, f"WRN-{{}}-{k}-bottleneck".format)
        return _imagenet("wrn", depth, width=_read_width(text, k, 64))
    if ending and family == "imagenet":
        raise UsageError(f"{text}: {ending[:2]} is for 32x32 networks; leave out family='imagenet'")
    if is_ambiguous(text) and family is None:
        _read_width(text, k, 64)  # a width that is illegal in both readings is the worse mistake
        raise UsageError(
            f"{text} names two networks: the one for 32x32 images, 34 = 6*5+4, and Table 7's for ImageNet; "
            "choose with family='cifar' or family='imagenet'"
        )
    # of Table 7's depths, 34 = 6N+4 is also a 32x32 network's, and 18 is not: without a family, 18 means ImageNet
    if family == "imagenet" or (family is None and not ending and depth == 18):
        _check_imagenet(text, family, depth, BASIC_DEPTHS, f"WRN-{{}}-{k}".format)
        return _imagenet("wrn", depth, width=_read_width(text, k, 64))
    kernels, literal = _read_block(text, ending)
    # Table 2 keeps N = (n - 4) / 6 whatever the block holds, so that all its networks have as many blocks; in Table 3
    # a block of l convolutions counts as l, so that all its networks have as many convolutions
    step = 3 * len(kernels) if literal else 6
    rule = f"depth must be {step}N+4" + (f" for l = {len(kernels)}" if literal else "")
    # WRN-50-2 is how many call WRN-50-2-bottleneck
    also = f", WRN-{depth}-{k}-bottleneck" if depth in BOTTLENECK_DEPTHS and not (ending or family) else ""
    write = f"WRN-{{}}-{k}{_ending(kernels, literal)}".format
    blocks = _read_depth(text, depth, step, 4, rule, write, also)
    width = _read_width(text, k, 16)
    # -l2 is the plain block, and both ways of counting agree on it: one network, one canonical name
    return NetworkName("wrn", "cifar", depth, blocks, kernels, width, literal_depth=literal and len(kernels) != 2)


def _read_resnet(text: str, kind: str, depth: int, rest: str, family: str | None) -> NetworkName | None:
    if rest not in (("",) if kind == "resnet" else ("", "-basic", "-bottleneck")):
        return None
    prefix = _PREFIXES[kind]
    legal = tuple(IMAGENET_BLOCKS) if kind == "preact" else BASIC_DEPTHS + BOTTLENECK_DEPTHS
    if family == "imagenet" or (family is None and depth in legal):
        _check_imagenet(text, family, depth, legal, f"{prefix}-{{}}".format)
        network = _imagenet(kind, depth)
        if rest and (rest == "-bottleneck") != network.bottleneck:
            raise UsageError(f"{text}: for ImageNet the depth decides the block; write {prefix}-{depth}")
        return network
    # three groups of N blocks, each of two convolutions (basic) or three (bottleneck), plus stem and linear layer
    bottleneck = rest == "-bottleneck" or (not rest and kind == "preact" and _is_preact_bottleneck(depth, "cifar"))
    step, kernels = (9, (1, 3, 1)) if bottleneck else (6, (3, 3))
    block = f" for {'bottleneck' if bottleneck else 'basic'} blocks" if kind == "preact" else ""
    also = f"; {prefix}-{depth} is an ImageNet network (family='imagenet')" if depth in legal else ""
    rule = f"depth must be {step}N+2{block}"
    blocks = _read_depth(text, depth, step, 2, rule, f"{prefix}-{{}}{rest}".format, also)
    return NetworkName(kind, "cifar", depth, blocks, kernels, bottleneck=bottleneck)


def _read_resnext(text: str, depth: int, rest: str, family: str | None) -> NetworkName | None:
    match = re.fullmatch(r"-([0-9]+)x([0-9]+)d", rest)
    if match is None:
        return None
    cardinality, base_width = int(match[1]), int(match[2])
    if (depth, cardinality, base_width) not in RESNEXT:
        raise UsageError(f"{text}: one of {', '.join(f'ResNeXt-{n}-{c}x{w}d' for n, c, w in RESNEXT)}")
    _check_imagenet(text, family, depth, BOTTLENECK_DEPTHS, str)
    return _imagenet("resnext", depth, cardinality=cardinality, base_width=base_width)


def _imagenet(kind: str, depth: int, width: float = 1.0, cardinality: int = 1, base_width: int = 64) -> NetworkName:
    bottleneck = depth not in BASIC_DEPTHS
    kernels = (1, 3, 1) if bottleneck else (3, 3)
    blocks = IMAGENET_BLOCKS[depth]
    return NetworkName(kind, "imagenet", depth, blocks, kernels, width, bottleneck, False, cardinality, base_width)


def _is_preact_bottleneck(depth: int, family: str) -> bool:
    return depth >= FIRST_BOTTLENECK_DEPTH if family == "cifar" else depth not in BASIC_DEPTHS


def _check_imagenet(
    text: str, family: str | None, depth: int, legal: tuple[int, ...], write: Callable[[int], str]
) -> None:
    """Check that an ImageNet network is not asked for as another one and has a published depth.

    Args:
        write: the name of the same network with another depth.
    """
    if family == "cifar":
        raise UsageError(f"{text} is an ImageNet network; leave out family='cifar'")
    if depth not in legal:
        close = sorted(sorted(legal, key=lambda n: abs(n - depth))[:2])
        raise UsageError(
            f"{text}: for ImageNet depth must be one of {', '.join(map(str, legal))}; "
            f"nearest {', '.join(map(write, close))}"
        )


def _read_depth(
    text: str, depth: int, step: int, offset: int, rule: str, write: Callable[[int], str], also: str
) -> tuple[int, ...]:
    """Return the blocks of each of three groups: N, N, N with depth = step * N + offset.

    Args:
        rule: the rule in words, for a message.
        write: the name of the same network with another depth.
        also: more suggestions, to end the message with.
    """
    num_blocks, left = divmod(depth - offset, step)
    if left or num_blocks < 1:
        close = sorted({offset + step * max(1, n) for n in (num_blocks, num_blocks + 1)})
        raise UsageError(f"{text}: {rule}; nearest {', '.join(write(n) for n in close if n <= MAX_DEPTH)}{also}")
    return (num_blocks,) * 3


def _read_width(text: str, k: str, channels: int) -> float:
    """Return the widening factor; the narrowest group has `channels` * k channels, which must be a whole number."""
    width = Fraction(k)  # exact, whatever the number of digits
    if width > MAX_WIDTH:
        raise UsageError(f"{text}: the widening factor k must be at most {MAX_WIDTH}")
    if width == 0 or (width * channels).denominator != 1:
        legal = Fraction(max(1, round(width * channels)), channels)
        raise UsageError(
            f"{text}: {channels}k = {float(width * channels):g} must be a whole number of channels, "
            f"at least 1; nearest k = {_width_text(float(legal))}"
        )
    return float(width)  # a multiple of 1/64, which a float holds exactly


def _read_block(text: str, ending: str) -> tuple[tuple[int, ...], bool]:
    """Return the kernel sizes of a block from the ending of a name, and whether the depth is literal (-l)."""
    if not ending:
        return (3, 3), False
    if re.fullmatch(r"-b\(.*\)-l[0-9]+|-l[0-9]+-b\(.*\)", ending):
        raise UsageError(f"{text}: -B(...) and -l both set the convolutions of a block; use one of them")
    if match := re.fullmatch(r"-l([0-9]+)", ending):
        if not 1 <= int(match[1]) <= MAX_DEEPENING:
            raise UsageError(f"{text}: l must be from 1 to {MAX_DEEPENING}, e.g. -l3")
        return (3,) * int(match[1]), True
    if match := re.fullmatch(r"-b\((.*)\)", ending):
        kernels = [int(size) if re.fullmatch("[0-9]+", size) else 0 for size in match[1].split(",")]
        if len(kernels) > MAX_CONVS or not all(size in LEGAL_KERNELS for size in kernels):
            raise UsageError(f"{text}: B(...) takes 1 to {MAX_CONVS} kernel sizes, each 1, 3, 5 or 7, e.g. B(3,1,3)")
        return tuple(kernels), False
    raise UsageError(f"{text}: unknown ending {ending}; use -B(3,1,3), -l3 or -bottleneck")


def _ending(kernels: tuple[int, ...], literal: bool) -> str:
    if kernels == (3, 3):
        return ""
    return f"-l{len(kernels)}" if literal else f"-B({','.join(map(str, kernels))})"


def _width_text(width: float) -> str:
    return str(int(width)) if width == int(width) else str(width)


def _checked_text(name: object) -> str:
    if not isinstance(name, str):
        kind = type(name).__name__
        raise UsageError(f"a network name is a string such as 'WRN-28-10', not {_shown(name)} ({kind})")
    text = name.strip()
    if len(text) > MAX_LENGTH:
        raise UsageError(f"{_shown(text)}: a network name has at most {MAX_LENGTH} characters")
    return text


def _shown(value: object) -> str:
    """A value as an error message shows it: one line, never long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 70 else text[:60] + "...'"


def _suggestion(text: str) -> str:
    """The most similar name of the catalog, as the end of a message."""
    names = {name.lower(): name for name in list_networks()}
    close = difflib.get_close_matches(to_grammar(text) or "", names, n=1, cutoff=0.5)
    return f"; did you mean {names[close[0]]}?" if close else ""
