"""How people spell network names: from `wrn_28_10` or `wide_resnet50_2` to the one form that the grammar reads.

This is about text alone. Whether there is such a network is decided in `wideresnet.spec.names`.
"""

from __future__ import annotations

import re

# Spelling, after blanks and underscores have become hyphens; the grammar's prefix. A match must reach up to the depth,
# so that the order does not matter.
_PREFIXES = {
    r"wrn": "wrn",
    r"wide-?res(?:idual)?-?net(?:work)?": "wide",
    r"resnet": "resnet",
    r"pre-?(?:act(?:ivation)?-?)?resnet": "preactresnet",
    r"resnext": "resnext",
}

# 28-10, 28x10, d28-k10, n28k10, each with an optional ending such as -l3 or B(3,1,3)
_WRN = re.compile(r"[dn]?([0-9]+)(?:-?[kw]|[-x])([0-9]+(?:\.[0-9]+)?)(?:-?([bl].*)|-(.*))?")

# B313, B3-1-3 and B3,1,3: legal kernel sizes have one digit each, so that no comma is needed to tell them apart, and a
# shell that would trip over parentheses can do without them
_BARE_BLOCK = re.compile(r"b-?[0-9](?:[-,x]?[0-9])*")

# torchvision and timm call these `wide_resnet50_2`, always with bottleneck blocks; the paper's Table 8 says so in the
# name, because it counts the depth of its other wide networks differently
_WIDE_BOTTLENECKS = ("50", "101")


def to_grammar(name: str) -> str | None:
    """Rewrite a network name into the grammar's form, in lower case.

    Args:
        name: any spelling, e.g. "Wide ResNet 28x10" or "WRN-40-2-b(3, 1, 3)".

    Returns:
        For instance "wrn-28-10" or "wrn-40-2-b(3,1,3)"; a name that does not begin like any network's is only
        normalized in its separators. None for text with characters that no name has.
    """
    text = re.sub(r"""['"`‘’“”]""", "", name)  # quotes that were meant for a shell
    if not (text.isascii() and text.isprintable()):
        return None
    text = re.sub(r" *([(),]) *", r"\1", text.lower())  # first: within B(3, 1, 3) a blank separates nothing
    text = re.sub(r"[ _-]+", "-", text).strip("-")
    for spelling, prefix in _PREFIXES.items():
        if match := re.fullmatch(rf"{spelling}-?([dn]?[0-9].*)", text):
            if prefix in ("wrn", "wide"):
                return _wrn_to_grammar(match[1], is_wide=prefix == "wide")
            return f"{prefix}-{match[1]}"
    return text


def _wrn_to_grammar(rest: str, is_wide: bool) -> str:
    """What follows the prefix of a wide network: depth, widening factor, ending."""
    match = _WRN.fullmatch(rest)
    if match is None:
        return f"wrn-{rest}"
    depth, k, ending = match[1], match[2], match[3] or match[4] or ""
    if _BARE_BLOCK.fullmatch(ending):
        ending = f"b({','.join(re.findall('[0-9]', ending))})"
    if is_wide and not ending and depth in _WIDE_BOTTLENECKS:
        ending = "bottleneck"
    return f"wrn-{depth}-{k}" + (f"-{ending}" if ending else "")
