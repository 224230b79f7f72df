from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wideresnet.base.errors import UsageError
from wideresnet.spec.names import FAMILIES, RESNEXT, NetworkName, is_ambiguous, list_networks, parse

widths = st.integers(1, 1_600).map(lambda sixteenths: sixteenths / 16)
blocks = st.integers(1, 100)


@st.composite
def legal_names(draw: st.DrawFn) -> tuple[str, str]:
    """A canonical name and its family."""
    n, k = draw(blocks), f"{draw(widths):.4f}".rstrip("0").rstrip(".")
    kernels = draw(st.lists(st.sampled_from((1, 3, 5, 7)), min_size=1, max_size=8))
    literal = draw(st.sampled_from((1, 3, 4)))
    basic, bottleneck = draw(st.sampled_from((18, 34))), draw(st.sampled_from((50, 101, 152)))
    resnext = draw(st.sampled_from(RESNEXT))
    ending = "" if kernels == [3, 3] else f"-B({','.join(map(str, kernels))})"
    return draw(
        st.sampled_from(
            (
                (f"WRN-{6 * n + 4}-{k}", "cifar"),
                (f"WRN-{6 * n + 4}-{k}{ending}", "cifar"),
                (f"WRN-{3 * n * literal + 4}-{k}-l{literal}", "cifar"),
                (f"WRN-{basic}-{k}", "imagenet"),
                (f"WRN-{bottleneck}-{k}-bottleneck", "imagenet"),
                (f"ResNet-{6 * n + 2}", "cifar"),
                (f"ResNet-{draw(st.sampled_from((basic, bottleneck)))}", "imagenet"),
                (f"PreActResNet-{min(6 * n + 2, 158)}", "cifar"),
                (f"PreActResNet-{9 * (n + 17) + 2}", "cifar"),
                (f"PreActResNet-{min(9 * n + 2, 155)}-bottleneck", "cifar"),
                (f"PreActResNet-{6 * (n + 27) + 2}-basic", "cifar"),
                (f"PreActResNet-{draw(st.sampled_from((basic, bottleneck, 200)))}", "imagenet"),
                ("ResNeXt-{}-{}x{}d".format(*resnext), "imagenet"),
            )
        )
    )


@given(legal_names(), st.booleans())
def test_parse_and_str_are_inverse_given_the_family(case: tuple[str, str], upper: bool) -> None:
    name, family = case
    network = parse(f" {name.upper() if upper else name.lower()}\n", family)
    assert (str(network), network.family) == (name, family)
    assert parse(str(network), network.family) == network


@given(st.one_of(st.text(), st.text(alphabet="wrnWRNest-_0123456789.()bBlLxpPacdki,'\" ", max_size=24)))
@example("WRN-40-2-B(3,,3)")
@example("WRN-40-2-B(" + "3," * 24)
@example("wrn-" + "9" * 50)
@example("WRN-28-10\n-B(3)")
@example("WRN-34-2\u2028")
@example("WRN-²-1")
@example("WRN-40-2-B(3,1)\r-l2")
def test_garbage_is_a_network_or_a_one_line_usage_error(text: str) -> None:
    try:
        network = parse(text)
    except UsageError as error:
        message = str(error)
    else:
        assert parse(str(network), network.family) == network
        return
    assert len(message.splitlines()) == 1
    assert len(message) < 400


@pytest.mark.parametrize("value", [None, 28, 2.5, b"WRN-28-10", ["WRN-28-10"], parse("WRN-28-10")])
def test_what_is_not_text_is_a_usage_error(value: object) -> None:
    with pytest.raises(UsageError, match="a network name is a string"):
        parse(value)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "num_blocks", "kernels"),
    [
        ("WRN-28-10", 4, (3, 3)),
        ("WRN-40-2-B(1,3,1)", 6, (1, 3, 1)),  # Table 2: N = (n - 4) / 6 whatever the block holds
        ("WRN-22-2-B(3,1,3)", 3, (3, 1, 3)),
        ("WRN-40-2-l1", 12, (3,)),  # Table 3: literal
        ("WRN-40-2-l3", 4, (3, 3, 3)),
        ("WRN-40-2-l4", 3, (3, 3, 3, 3)),
        ("ResNet-110", 18, (3, 3)),
        ("PreActResNet-110", 18, (3, 3)),
        ("PreActResNet-164", 18, (1, 3, 1)),
        ("PreActResNet-1001", 111, (1, 3, 1)),
    ],
)
def test_the_three_ways_to_count_depth_give_the_papers_blocks(
    name: str, num_blocks: int, kernels: tuple[int, ...]
) -> None:
    network = parse(name)
    assert network.num_blocks == (num_blocks,) * 3
    assert network.kernels == kernels
    assert network.convs_per_block == len(kernels)
    assert network.depth_meaning.startswith(f"depth {network.depth} ")


@pytest.mark.parametrize("name", ["WRN-40-2-l2", "WRN-40-2-B(3,3)", "WRN-40-2-b( 3, 3 )", "wrn-040-2.0"])
def test_other_spellings_of_the_plain_block_have_the_plain_name(name: str) -> None:
    assert parse(name) == parse("WRN-40-2")


def test_b3_and_l1_are_different_networks() -> None:
    assert parse("WRN-40-2-B(3)") != parse("WRN-40-2-l1")


def test_wrn_34_needs_a_family_within_the_range_of_table_7_only() -> None:
    assert is_ambiguous("wrn-34-2")
    assert not is_ambiguous("WRN-34-10")
    for name in ("WRN-34-2", "wrn34_2", "WideResNet-34x1.5"):
        assert is_ambiguous(name)
        with pytest.raises(UsageError, match=r"two networks.*family='cifar' or family='imagenet'"):
            parse(name)
    assert parse("WRN-34-2", "cifar").num_blocks == (5, 5, 5)
    assert parse("WRN-34-2", "imagenet").num_blocks == (3, 4, 6, 3)
    assert parse("WRN-34-10").family == "cifar"
    assert parse("WRN-34-10", "imagenet").family == "imagenet"
    assert parse("WRN-18-2").family == "imagenet"


def test_resnet_depths_of_imagenet_mean_imagenet_unless_the_family_says_otherwise() -> None:
    assert parse("ResNet-50").family == "imagenet"
    assert parse("ResNet-50", "cifar").num_blocks == (8, 8, 8)
    assert parse("PreActResNet-200").num_blocks == (3, 24, 36, 3)
    assert parse("PreActResNet-200", "cifar").num_blocks == (22, 22, 22)


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        ("WRN-29-10", None, r"WRN-29-10: depth must be 6N\+4; nearest WRN-28-10, WRN-34-10"),
        ("WRN-4-1", None, r"nearest WRN-10-1$"),
        ("WRN-50-2", None, r"nearest WRN-46-2, WRN-52-2, WRN-50-2-bottleneck"),
        ("WRN-41-2-l3", None, r"9N\+4 for l = 3; nearest WRN-40-2-l3, WRN-49-2-l3"),
        ("WRN-41-2-B(3,1)", None, r"nearest WRN-40-2-B\(3,1\), WRN-46-2-B\(3,1\)"),
        ("WRN-28-2.3", None, r"16k = 36.8 must be a whole number.*nearest k = 2.3125"),
        ("WRN-28-0", None, r"at least 1; nearest k = 0.0625"),
        ("WRN-28-101", None, r"k must be at most 100"),
        ("WRN-10000000000-1", None, r"depth must be at most 4000"),
        ("WRN-3994-100-B(7,7,7,7,7,7,7,7)", None, r"15,960 convolutions in its blocks, at most 4,000 are allowed"),
        ("WRN-28", None, r"k is missing"),
        ("WRN-40-2-l5", None, r"l must be from 1 to 4"),
        ("WRN-40-2-B(2)", None, r"each 1, 3, 5 or 7"),
        ("WRN-40-2-B()", None, r"1 to 8 kernel sizes"),
        ("WRN-40-2-B(3,3,3,3,3,3,3,3,3)", None, r"1 to 8 kernel sizes"),
        ("WRN-40-2-B(3)-l2", None, r"both set the convolutions"),
        ("WRN-40-2-wide", None, r"unknown ending -wide"),
        ("WRN-28-10", "imagenet", r"depth must be one of 18, 34; nearest WRN-18-10, WRN-34-10"),
        ("WRN-40-2-l3", "imagenet", r"-l is for 32x32 networks"),
        ("WRN-18-2", "cifar", r"nearest WRN-16-2, WRN-22-2"),
        ("WRN-60-2-bottleneck", None, r"one of 50, 101, 152; nearest WRN-50-2-bottleneck"),
        ("WRN-50-2-bottleneck", "cifar", r"is an ImageNet network"),
        ("ResNet-111", None, r"6N\+2; nearest ResNet-110, ResNet-116"),
        ("ResNet-18", "cifar", r"is an ImageNet network \(family='imagenet'\)"),
        ("PreActResNet-165", None, r"9N\+2 for bottleneck blocks; nearest PreActResNet-164"),
        ("PreActResNet-18-bottleneck", None, r"write PreActResNet-18"),
        ("ResNeXt-50-16x4d", None, r"one of ResNeXt-50-32x4d"),
        ("WRN-28-10", "cifer", r"did you mean cifar\?"),
    ],
)
def test_an_illegal_number_is_an_error_that_names_the_rule_and_the_nearest_names(
    name: str, family: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(name, family)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        *((spelling, "WRN-28-10") for spelling in (
            "wrn_28_10", "wrn28_10", "WRN28-10", "WRN-28x10", "wrn-28_10", "WRN-d28-k10", "wrn-n28-w10", "WRN d28k10",
            "WideResNet-28-10", "wide_resnet_28_10", "WideResNet28x10", "Wide Residual Network 28-10", "'WRN-28-10'",
        )),
        ("Wide ResNet 40 2", "WRN-40-2"),
        ("wide-resnet18-1.5", "WRN-18-1.5"),
        *((spelling, "WRN-40-2-B(3,1,3)") for spelling in (
            "WRN-40-2-B313", "wrn_40_2_b313", "WRN-40-2-b(3, 1, 3)", "WRN-40-2-B 3,1,3", "wrn40-2-B3-1-3",
            "WRN-40-2-'B(3,1,3)'", '"WRN-40-2-B(3,1,3)"', "WRN 40 2 B (3,1,3)", "WRN-40-2B313",
        )),
        ("WRN-40-2-B33", "WRN-40-2"),
        ("WRN-40-2-B3", "WRN-40-2-B(3)"),
        ("wrn_40_2_l3", "WRN-40-2-l3"),
        ("wrn_50_2_bottleneck", "WRN-50-2-bottleneck"),
        ("wide_resnet50_2", "WRN-50-2-bottleneck"),  # torchvision's and timm's
        ("wide_resnet101_2", "WRN-101-2-bottleneck"),
        ("resnet18", "ResNet-18"),
        ("resnet50", "ResNet-50"),
        ("resnet_110", "ResNet-110"),
        ("preact_resnet164", "PreActResNet-164"),
        ("PreActivationResNet-170-basic", "PreActResNet-170-basic"),
        ("PreResNet110", "PreActResNet-110"),
        ("resnext50_32x4d", "ResNeXt-50-32x4d"),
        ("resnext-101_64x4d", "ResNeXt-101-64x4d"),
    ],
)  # fmt: skip
def test_common_spellings_are_accepted_and_answered_with_the_canonical_name(spelling: str, canonical: str) -> None:
    assert str(parse(spelling)) == canonical
    assert parse(spelling) == parse(canonical)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("wrn_29_10", r"^wrn_29_10: depth must be 6N\+4; nearest WRN-28-10, WRN-34-10"),  # as it was written
        ("WRN-40-2-B213", r"each 1, 3, 5 or 7"),
        ("WRN-40-2-B333333333", r"1 to 8 kernel sizes"),
        ("WNR-28-10", r"is not a network name .*; did you mean WRN-28-10\?$"),
        ("resnet50_2", r"is not a network name .*; did you mean ResNet-50\?$"),
        ("wide_resnet152_2", r"nearest .*WRN-152-2-bottleneck$"),
        ("densenet121", r"is not a network name"),
        ("WRN-28-\u212a10", r"is not a network name"),  # a Kelvin sign, whose lower case is k
    ],
)
def test_what_is_no_common_spelling_is_an_error_that_names_what_was_probably_meant(spelling: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(spelling)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_listed_network_is_canonical_in_its_family(family: str) -> None:
    names = list_networks(family)
    assert len(set(names)) == len(names)
    for name in names:
        network = parse(name, family)
        assert (str(network), network.family) == (name, family)


def test_the_whole_list_has_each_name_once_and_both_wrn_34_2_are_reachable() -> None:
    assert set(list_networks()) == set(list_networks("cifar")) | set(list_networks("imagenet"))
    assert list_networks().count("WRN-34-2") == 1
    assert parse("WRN-34-2", "cifar") != parse("WRN-34-2", "imagenet")
    with pytest.raises(UsageError, match="one of cifar, imagenet"):
        list_networks("mnist")


def test_group_widths_widen_the_groups_but_not_the_stem() -> None:
    assert parse("WRN-28-10").group_widths == ((160, 160), (320, 320), (640, 640))
    assert parse("WRN-28-10").stem_channels == 16
    assert parse("WRN-18-1.5").group_widths == ((96, 96), (192, 192), (384, 384), (768, 768))
    assert parse("WRN-50-2-bottleneck").group_widths[0] == (128, 128, 256)
    assert parse("ResNeXt-50-32x4d").group_widths[0] == (128, 128, 256)
    assert parse("PreActResNet-164").group_widths == ((16, 16, 64), (32, 32, 128), (64, 64, 256))


def test_the_weights_of_the_blocks_are_counted_from_the_name_alone() -> None:
    assert parse("WRN-10-1").num_block_weights == 9 * (16 * 16 * 2 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    # published: 36.5 M and 25.6 M parameters, of which the rest are projections, normalizations and the linear layer
    assert 0.98 < parse("WRN-28-10").num_block_weights / 36.5e6 < 1
    assert 0.8 < parse("ResNet-50").num_block_weights / 25.6e6 < 1
    assert 0.8 < parse("ResNeXt-50-32x4d").num_block_weights / 25.0e6 < 1


def test_a_network_name_is_a_value() -> None:
    assert isinstance(hash(parse("WRN-28-10")), int)
    assert NetworkName("wrn", "cifar", 28, (4, 4, 4), width=10.0) == parse("WRN-28-10")


def test_the_grammar_does_not_need_torch() -> None:
    program = "import sys, wideresnet.spec.names, wideresnet.spec.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
