from __future__ import annotations

import search_spaces
from nas.core.arch import Arch
from nas.networks.building import build
from nas.report.facts import in_short
from search_spaces import efficientformer as ef


def test_a_published_arch_in_short():
    found = in_short(ef.PRESETS["efficientformer-l1"])
    assert found["widths"] == [48, 96, 224, 448]
    assert found["depths"] == [4, 3, 7, 5]  # with the stem and the embeddings
    assert found["blocks"] == "Stem x1, MB4D x14, Embedding x3, MB3D x1"
    assert (found["input"], found["parameters"]) == (224, "12,289,928")


def test_a_stage_that_opens_with_tokens_has_the_width_of_its_map():
    search_spaces.load("hybrid-32")  # its blocks become known
    text = (
        "Stem cout=32 convs=1; MB4D ratio=2 x3 | Tokens tokens=6 dim=64; BridgeIn; Former; MobileDown cout=48 "
        "expands=6,4, kernel=3 groups=1; BridgeOut | PatchEmbed cout=96 stride=2; NCB ratio=2 x2 | NextPooled; "
        "Logits classes=10 heads=1"
    )
    arch = Arch.from_text(text, "hybrid-32", (3, 32, 32), 10)
    found = in_short(arch)
    assert (found["widths"], found["depths"]) == ([32, 48, 96], [4, 5, 3])
    assert found["blocks"].startswith("Stem x1, MB4D x3, Tokens x1, BridgeIn x1, Former x1, MobileDown x1")
    assert found["parameters"] == f"{sum(parameter.numel() for parameter in build(arch).parameters()):,}"
