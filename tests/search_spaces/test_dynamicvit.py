"""DynamicViT against its published counts, and its three ways to run: masked, gathered, and its host alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import search_spaces
from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError
from nas.core.ops import Row, Shape
from nas.core.tracing import calls_of_unit
from nas.evaluation.criterion import Criterion
from nas.evaluation.data import load_data
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import train
from nas.networks.building import Network, build, cost_of
from search_spaces import deit
from search_spaces import dynamicvit as dv
from tests.small import assert_close, lively

# parameters of the official code, and its MACs in millions by fvcore, which counts norms, for several percentages
PARAMS = {
    "deit-t": 5_899_582,
    "deit-256": 10_304_942,
    "deit-s": 22_774_414,
    "deit-b": 89_452_846,
    "lvvit-s": 26_875_574,
    "lvvit-m": 57_115_030,
}
MEASURED = {
    "deit-t": {70: 804.6},
    "deit-256": {100: 2_206, 70: 1_379},
    "deit-s": {100: 4_750, 90: 4_050, 80: 3_471, 70: 2_988, 60: 2_570, 50: 2_234},
    "deit-b": {70: 11_489},
    "lvvit-s": {100: 6_711, 90: 5_893, 80: 5_221, 70: 4_664, 50: 3_801},
    "lvvit-m": {100: 12_956, 90: 11_231, 80: 9_804, 70: 8_612, 50: 6_756},
}
COUNTS = {
    90: [176, 158, 142],
    80: [156, 125, 100],
    70: [137, 96, 67],
    60: [117, 70, 42],
    50: [98, 49, 24],
    100: [196, 196, 196],
}
GFLOPS = {
    "deit-s": {90: 4.0, 80: 3.4, 70: 2.9},
    "lvvit-s": {90: 5.8, 80: 5.1, 70: 4.6},
    "lvvit-m": {90: 11.1, 80: 9.6, 70: 8.5},
}
SIZES = {"deit-t": (192, 12), "deit-256": (256, 12), "deit-s": (384, 12), "deit-b": (768, 12)}
SIZES |= {"lvvit-s": (384, 16), "lvvit-m": (512, 20)}
CASES = [(host, keep) for host, figures in MEASURED.items() for keep in figures]


def closed_form(host, counts):
    """MACs at 224 without norms, those of predictors among them, and the values that layer and batch norms write."""
    (width, depth), lvvit = SIZES[host], host.startswith("lvvit")
    seen = [196, *counts]
    ratio = 3 if lvvit else 4
    macs = 112**2 * 64 * (147 + 2 * 576) + 196 * 64**2 * width if lvvit else 196 * 3 * 256 * width
    normed = predictors = 0
    for block in range(depth):
        n = seen[4 * block // depth] + 1
        macs += n * (4 + 2 * ratio) * width**2 + 2 * n * n * width
        normed += 2 * n * width
    for n in seen[:3]:
        predictors += n * 13 * width**2 // 8 + n * width // 2
        normed += n * width
    n = counts[-1] + 1
    macs += 1000 * width * (n if lvvit else 1)
    return macs + predictors, predictors, normed + n * width, 3 * 112**2 * 64 if lvvit else 0


def small(kind, keep=(60, 60), **changes):
    """A small network on images of side 32, with selections before its blocks 1, 2 and so on."""
    host = dv.SMALL_LVVIT if kind == "lvvit" else dv.SMALL_DEIT
    return dv.make(host, 32, 4, range(1, 1 + len(keep)), keep, side=32, classes=7, **changes)


def images(batch=3):
    return torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(network, x):
    """All streams behind the last block."""
    streams = {"x": x}
    for stage in network.stages:
        for block in stage:
            block.advance(streams)
    return streams


def masked(network):
    """Training mode, but with the statistics of batch norms as they are."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return network


def best_first(*counts):
    """In place of `draw`: keeps the patch tokens that inference would, one count for each selection in turn."""
    left = list(counts)

    def decide(scores, *before):
        margin = scores[..., 0] - scores[..., 1]
        for keep in before:
            margin = margin.masked_fill(keep < 0.5, -torch.inf)
        best = margin.topk(left.pop(0), 1).indices
        return torch.zeros_like(margin).scatter(1, best, 1.0)

    return decide


# Published figures


@pytest.mark.parametrize(("host", "keep"), CASES)
def test_counts_are_the_published_ones(host, keep):
    cost = cost_of(dv.published(host, keep))
    macs, predictors, normed, batch_normed = closed_form(host, COUNTS[keep])
    assert cost.params == PARAMS[host]
    assert cost.macs == macs
    with_norms = (macs + 5 * normed + 2 * batch_normed) / 1e6  # as fvcore counts them
    assert with_norms == pytest.approx(MEASURED[host][keep], abs=0.05 if host == "deit-t" else 0.5)
    if keep in GFLOPS.get(host, {}):
        assert (macs - predictors) / 1e9 - 0.05 <= GFLOPS[host][keep] <= with_norms / 1e3 + 0.05


def test_deit_s_at_70_percent_has_the_counts_without_norms_to_the_digit():
    assert round(cost_of(dv.PRESETS["dynamicvit-deit-s-0.7"]).macs / 1e6, 2) == 2_980.90


@pytest.mark.parametrize(("host", "params"), [("lvvit-s", 26_151_824), ("lvvit-m", 55_830_544)])
def test_hosts_without_selections_have_the_published_parameters(host, params):
    assert cost_of(dv.PRESETS[host]).params == params


def test_every_published_ratio_is_a_preset():
    named = {f"dynamicvit-{host}-0.{keep // 10}" for host, keep in CASES if keep < 100}
    assert named == {name for name in dv.PRESETS if name.startswith("dynamicvit-")}
    for host, keep in CASES:
        if keep < 100:
            assert dv.PRESETS[f"dynamicvit-{host}-0.{keep // 10}"] == dv.published(host, keep)


@pytest.mark.parametrize("keep", COUNTS)
def test_as_many_tokens_are_kept_as_published(keep):
    calls = calls_of(dv.published("deit-s", keep))
    kept = [call.outputs[0][1] - 1 for call in calls if isinstance(call.row.unit, dv.Prune)]
    assert kept == COUNTS[keep]


@pytest.mark.parametrize(("host", "first", "every"), [("deit-s", 3, 3), ("lvvit-s", 4, 4), ("lvvit-m", 5, 5)])
def test_selections_stand_where_they_are_published(host, first, every):
    params = dv.SPACE.params_of(dv.published(host, 80))
    assert [params[f"stage1.{name}"] for name in ("first", "every", "selections", "keep")] == [first, every, 3, 80]


def test_a_larger_image_keeps_the_same_part():
    arch = dataclasses.replace(dv.published("deit-s", 70), input_shape=(3, 384, 384))
    kept = [call.outputs[0][1] - 1 for call in calls_of(arch) if isinstance(call.row.unit, dv.Prune)]
    assert kept == [576 * 7 // 10, 576 * 49 // 100, 576 * 343 // 1000]
    assert cost_of(arch).macs / 1e9 == pytest.approx(9.5, abs=0.3)  # the paper's 9.5 G; 15.5 without selections


# Masks and gathers


@pytest.mark.parametrize("kind", ["deit", "lvvit"])
def test_masked_and_gathered_tokens_give_the_same_outputs_when_the_mask_is_the_same(kind, monkeypatch):
    network = lively(build(small(kind))).double()
    with torch.no_grad():
        gathered = network.eval()(images())
        monkeypatch.setattr(dv._Prune, "draws", True)
        monkeypatch.setattr(dv, "draw", best_first(38, 23))  # floor(64 * .6), floor(64 * .36)
        streams = run(masked(network), images())
        monkeypatch.setattr(dv._Prune, "draws", True)
        monkeypatch.setattr(dv, "draw", lambda scores, *before: torch.ones_like(scores[..., 0]))
        everything = network(images())
    assert_close(streams["x"], gathered, 1e-5)
    assert (everything - gathered).abs().max() > 1e-2 * gathered.abs().max()
    assert streams["kept"].sum(2).tolist() == [[38, 23]] * 3


@pytest.mark.parametrize("kind", ["deit", "lvvit", "plain"])
def test_keeping_everything_is_the_host(kind):
    plain = deit.make(32, 4, head_dim=16, patch=4, side=32, classes=7)
    arch, alone = small(kind, keep=(100, 100)), plain if kind == "plain" else small(kind, keep=())
    host, network = lively(build(alone)).double().eval(), lively(build(arch), seed=1).double().eval()
    missing, unexpected = network.load_state_dict(dv.from_host(host.state_dict(), alone, arch), strict=False)
    assert not unexpected
    prunes = [f"stages.0.{n}." for n, block in enumerate(arch.stages[0]) if isinstance(block, dv.Prune)]
    assert all(name.startswith(tuple(prunes)) for name in missing)
    with torch.no_grad():
        assert_close(network(images()), host(images()), 1e-9)


def test_a_host_of_another_depth_is_refused():
    arch = dv.make(dv.SMALL_DEIT, 32, 5, side=32, classes=7)
    with pytest.raises(InputError, match="expected 8"):
        dv.from_host({}, small("deit"), arch)


def predicted(state, x):
    """The scores of a prediction module, computed from its weights as the sheet says."""
    layer = {name.removesuffix(".weight"): F.linear for name, value in state.items() if value.ndim == 2}
    hidden = F.layer_norm(x, x.shape[-1:], state["embed.0.body.weight"], state["embed.0.body.bias"])
    hidden = F.gelu(F.linear(hidden, state["embed.1.body.0.weight"], state["embed.1.body.0.bias"]))
    half = hidden.shape[2] // 2
    mean = hidden[..., half:].mean(1, keepdim=True).expand(-1, x.shape[1], -1)
    hidden = torch.cat([hidden[..., :half], mean], 2)
    for name in ("score.0.body.0", "score.1.body.0"):
        hidden = F.gelu(F.linear(hidden, state[f"{name}.weight"], state[f"{name}.bias"]))
    assert len(layer) == 4
    return F.linear(hidden, state["score.2.body.weight"], state["score.2.body.bias"]).log_softmax(2)


def test_inference_keeps_the_tokens_with_the_best_probabilities(monkeypatch):
    block, shape = dv.Prune((50,)), Shape(2, 17, 16)
    module = lively(block.build(shape, Shape(2, 0, 16))).double().eval()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got, kept = module(x, torch.empty(2, 0, 16))
        scores = predicted(module.state_dict(), x[:, 1:])
    assert kept.shape == (2, 0, 16)
    for image, tokens in enumerate(got):
        order = sorted(range(16), key=lambda token, image=image: -float(scores[image, token, 0]))
        assert torch.equal(tokens, x[image, [0, *(1 + token for token in order[:8])]])


def lvvit_by_hand(state, x, depth, heads):
    """LV-ViT without selections from its weights: (N, 1 + n, C) tokens behind the stem -> logits."""
    width = x.shape[2]

    def norm(name, x):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    for block in range(2, 2 + depth):
        at = f"stages.0.{block}.body"
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in linear(f"{at}.0.body.1.body.qkv", norm(f"{at}.0.body.0.body", x)).chunk(3, 2)
        )
        mixed = (q @ k.transpose(2, 3) / (width / heads) ** 0.5).softmax(3) @ v
        x = x + linear(f"{at}.0.body.1.body.proj", mixed.transpose(1, 2).flatten(2)) / 2
        hidden = F.gelu(linear(f"{at}.1.body.1.body.0", norm(f"{at}.1.body.0.body", x)))
        x = x + linear(f"{at}.1.body.2.body", hidden) / 2
    x = norm("stages.1.0.body.norm.body", x)
    first, patches = linear("stages.1.1.body.first.body", x[:, 0]), linear("stages.1.1.body.patches.body", x[:, 1:])
    return first + patches.max(1).values / 2


def test_lvvit_halves_branches_and_adds_the_best_patch():
    network = lively(build(small("lvvit", keep=()))).double().eval()
    with torch.no_grad():
        tokens = network.stages[0][0](images())
        expected = lvvit_by_hand(network.state_dict(), tokens, 4, 2)
        assert_close(network(images()), expected, 1e-9)
    assert "stages.0.2.body.0.body.1.body.qkv.bias" not in network.state_dict()


# Training


@pytest.mark.parametrize("kind", ["deit", "lvvit"])
def test_training_gives_decisions_and_tokens_at_the_end_of_the_network(kind, monkeypatch):
    monkeypatch.setattr(dv._Prune, "draws", True)
    arch = small(kind, keep=(70, 70, 70))
    torch.manual_seed(0)
    network = build(arch).double().train()
    streams = run(network, images())
    kept, tokens = streams["kept"], streams["tokens"]
    assert streams["x"].shape == (3, 7)
    assert kept.shape == (3, 3, 64)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert (kept.diff(dim=1) <= 0).all()  # what is dropped stays dropped
    assert kept.mean((0, 2)).tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 8], abs=0.12)  # fresh scores say nothing
    assert tokens.shape == (3, 65, 32)
    head = network.stages[1][1]
    logits = head.body.token_logits(tokens) if kind == "lvvit" else head(tokens)
    assert logits.shape == (3, 65, 7)
    if kind == "deit":
        assert_close(logits[:, 0], streams["x"], 1e-9)


@pytest.mark.parametrize("kind", ["deit", "lvvit"])
def test_a_loss_on_the_kept_share_teaches_the_scores(kind):
    network = build(small(kind)).double().train()
    share = run(network, images())["kept"].mean(2)
    ((share - torch.tensor([0.6, 0.36])) ** 2).mean().backward()
    for name in ("stages.0.3.body.score.2.body.weight", "stages.0.5.body.embed.1.body.0.weight"):
        assert network.get_parameter(name).grad.abs().max() > 0


def test_decisions_are_drawn_from_torchs_generator():
    scores = torch.zeros(2, 50, 2)
    torch.manual_seed(3)
    first, second = dv.draw(scores), dv.draw(scores)
    torch.manual_seed(3)
    assert torch.equal(dv.draw(scores), first)
    assert not torch.equal(first, second)


def test_decisions_follow_the_scores_and_what_was_dropped():
    torch.manual_seed(0)
    scores = torch.tensor([[0.0, 0.0], [1.0, 0.0], [30.0, 0.0], [0.0, 30.0]]).repeat(4000, 1, 1).requires_grad_()
    keep = dv.draw(scores)
    assert keep.mean(0).tolist() == pytest.approx([0.5, torch.e / (1 + torch.e), 1, 0], abs=0.03)
    before = (torch.arange(4000) % 2)[:, None].expand(-1, 4).float()
    again = dv.draw(scores, before)
    assert again[::2].max() == 0
    assert again[1::2].mean(0).tolist() == pytest.approx([0.5, torch.e / (1 + torch.e), 1, 0], abs=0.04)
    again.sum().backward()
    assert scores.grad[::2].abs().max() == 0
    assert scores.grad[1::2, :2].abs().min() > 0


def test_half_precision_scores_are_drawn_in_single_precision():
    assert dv.draw(torch.zeros(1, 4, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_network_that_drops_everything_has_finite_gradients(monkeypatch):
    for kind in ("deit", "lvvit"):
        network = build(small(kind)).double().train()
        monkeypatch.setattr(dv._Prune, "draws", True)
        monkeypatch.setattr(dv, "draw", lambda scores, *before: 0 * scores[..., 0])
        network(images()).sum().backward()
        assert all(each.grad is None or each.grad.isfinite().all() for each in network.parameters())


# Ops


def test_the_global_half_is_a_mean_over_what_is_kept():
    x = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]]])
    op = dv.LocalGlobal(2).body()
    assert op(x).tolist() == [[[1, 30], [2, 30], [3, 30]]]
    assert op(x, torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [[[1, 15], [2, 15], [3, 15]]]
    assert op(x, torch.zeros(1, 3)).tolist() == [[[1, 0], [2, 0], [3, 0]]]


def test_selection_gathers_the_class_token_and_the_best():
    x = torch.arange(10.0).view(1, 5, 2)
    scores = torch.tensor([[[0.0, 1.0], [5.0, 4.9], [3.0, 0.0], [9.0, 9.0]]])
    assert dv.TokenSelect(2).body()(x, scores).tolist() == [[[0, 1], [6, 7], [4, 5]]]


def test_half_of_the_best_patch_is_added_where_it_is_kept():
    first, patches = torch.tensor([[1.0, 1.0]]), torch.tensor([[[4.0, 2.0], [8.0, 0.0]]])
    op = dv.AddBest().body()
    assert op(first, patches).tolist() == [[5, 2]]
    assert op(first, patches, torch.tensor([[1.0, 0.0]])).tolist() == [[3, 2]]
    assert op(first, patches, torch.zeros(1, 2)).tolist() == [[1, 1]]


# Rows


def test_a_table_prices_predictor_and_selection():
    names = {}
    for call in calls_of(dv.PRESETS["dynamicvit-deit-s-0.7"]):
        names.setdefault(type(call.row.unit).__name__, [type(op.row.unit).__name__ for op in call.ops])
    predictor = ["LayerNorm", "Linear", "LocalGlobal", "Linear", "Linear", "Linear"]
    assert names["Prune"] == [*predictor, "TokenSelect"]
    assert "Undecided" not in names


def test_the_mask_costs_nothing_in_inference():
    block, shape = dv.ViTBlock(4), Shape(1, 138, 384)
    pruned = dv.PrunedViTBlock(4)
    plain = calls_of_unit(Row(block, (shape,)))
    behind = calls_of_unit(Row(pruned, (shape, Shape(1, 0, 196))))
    assert [op.row for op in behind.ops] == [op.row for op in plain.ops]
    assert (behind.outputs, behind.peak_bytes) == (plain.outputs, plain.peak_bytes)


def test_behind_a_selection_no_row_knows_where_it_stood():
    arch, later = (dv.make(dv.DEIT, 192, 12, places, (70, 70)) for places in ((2, 5), (4, 9)))
    rows = [{call.row for call in calls_of(each)} for each in (arch, later)]
    assert rows[0] == rows[1]


# The space


def test_choices_that_say_nothing_leave_no_trace():
    base = dv.SPACE.params_of(dv.PRESETS["dynamicvit-deit-s-0.7"])
    alone = [
        dv.SPACE.arch(base | {"stage1.selections": 0, "stage1.keep": keep, "stage1.first": first})
        for keep, first in ((50, 2), (90, 5))
    ]
    once = [dv.SPACE.arch(base | {"stage1.selections": 1, "stage1.every": every}) for every in (2, 5)]
    assert alone[0] == alone[1]
    assert once[0] == once[1] != alone[0]


def test_a_selection_with_no_block_behind_it_is_left_out():
    base = dv.SPACE.params_of(dv.PRESETS["dynamicvit-deit-s-0.7"])
    late = base | {"stage1.depth": 8, "stage1.first": 4, "stage1.every": 5}
    arch = dv.SPACE.arch(late)
    assert sum(isinstance(block, dv.Prune) for block in arch.stages[0]) == 1
    assert arch == dv.SPACE.arch(late | {"stage1.selections": 1})


def test_free_percentages_multiply():
    arch = dv.make(dv.DEIT, 192, 6, (1, 3), (90, 50))
    kept = [call.outputs[0][1] - 1 for call in calls_of(arch) if isinstance(call.row.unit, dv.Prune)]
    assert kept == [176, 88]


def test_percentages_of_all_tokens_are_taken_from_all():
    """k_s = floor(T * rho_s), by hand for T = 196: 176.4, 156.8, 137.2; and the ratio loss wants just these."""
    arch = dv.make(dv.DEIT, 192, 12, (3, 6, 9), (90, 80, 70), of_all=True)
    kept = [call.outputs[0][1] - 1 for call in calls_of(arch) if isinstance(call.row.unit, dv.Prune)]
    assert kept == [176, 156, 137]
    asked = Criterion(Recipe(), Network(arch), 1000, None, torch.device("cpu")).ratios
    assert asked.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert Arch.from_json(arch.to_json()) == arch
    with pytest.raises(InputError, match=r"never rise, got \[70, 80\]"):
        dv.make(dv.DEIT, 192, 12, (3, 6), (70, 80), of_all=True)


@pytest.mark.parametrize(
    ("places", "keep", "message"),
    [
        ((3, 2), (70, 70), "ascending"),
        ((6,), (70,), "from 0 to 5"),
        ((1, 2), (70,), "one percentage for each of 2"),
    ],
)
def test_places_that_cannot_be_are_refused(places, keep, message):
    with pytest.raises(InputError, match=message):
        dv.make(dv.DEIT, 192, 6, places, keep)


@pytest.mark.parametrize("keep", [(0,), (101,), (), (1, 1, 1)])
def test_percentages_that_keep_nothing_are_refused(keep):
    with pytest.raises(InputError, match="keep"):
        dv.Prune(keep).build(Shape(1, 197, 64), Shape(1, 0, 196))


def test_a_selection_says_why_there_are_no_features():
    assert "drops tokens" in dv.Prune.no_map
    assert dv.LVStem.prefix_tokens == 1


@pytest.mark.parametrize(("side", "patch"), [(224, 12), (33, 4), (32, 1)])
def test_a_stem_that_does_not_divide_the_image_is_refused(side, patch):
    with pytest.raises(InputError, match="LVStem"):
        dv.LVStem(64, patch=patch).build(Shape(1, 3, side, side))


def test_deployed_lvvit_has_no_factors_left():
    calls = calls_of(small("lvvit"))
    assert "Damp" not in {type(op.row.unit).__name__ for call in calls for op in call.ops}
    with torch.device("meta"):
        assert "Damp" in str(Network(small("lvvit")))


def test_a_counted_draw_keeps_as_many_as_inference_and_only_of_those_kept_before():
    torch.manual_seed(0)
    scores = torch.randn(4, 10, 2, requires_grad=True)
    first = dv.draw_count(scores, 7)
    second = dv.draw_count(scores, 3, first)
    for keep, count in ((first, 7), (second, 3)):
        assert set(keep.detach().unique().tolist()) <= {0.0, 1.0}
        assert keep.sum(1).tolist() == [count] * 4
    assert (second <= first).all()
    (second[:, :5].sum()).backward()
    assert scores.grad.abs().sum() > 0
    assert torch.equal(scores.grad[..., 0], -scores.grad[..., 1])  # more of the one is less of the other


def test_a_counted_draw_prefers_tokens_as_their_scores_say():
    """Of one token kept: each as often as its logistic variable, the difference of two of Gumbel's, is the largest."""
    torch.manual_seed(1)
    keep = torch.tensor([0.0, 1.0, 2.0])
    scores = torch.stack([keep, torch.zeros(3)], 1).expand(20000, 3, 2)
    shares = dv.draw_count(scores, 1).mean(0)
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    density = torch.sigmoid(grid) * torch.sigmoid(-grid)
    others = [[k for j, k in enumerate(keep.tolist()) if j != i] for i in range(3)]
    expected = [
        float((density * torch.sigmoid(grid + keep[i] - a) * torch.sigmoid(grid + keep[i] - b)).sum() * 0.001)
        for i, (a, b) in enumerate(others)
    ]
    torch.testing.assert_close(shares.double(), torch.tensor(expected, dtype=torch.float64), atol=0.015, rtol=0)


PRUNED = (
    "Stem cout=16 convs=1; InvertedResidual cout=16 stride=1 kernel=3 expand=3 | Embedding cout=32; MB4D ratio=2 | "
    "Embedding cout=64; MB3D ratio=2; BareUndecided; BarePrune keep=50,; PrunedMB3D ratio=2 head_dim=32 | "
    "PrunedPooled; Logits classes=10 heads=2"
)


def _trained(monkeypatch, recipe):
    """The shares of tokens kept in the steps of a training of a pruned hybrid on digits, and its result."""
    search_spaces.load("hybrid-32")
    shares, judge = [], Criterion.__call__

    def spy(self, streams, images, targets):
        shares.extend(streams["kept"].detach().mean(2).flatten().tolist())
        return judge(self, streams, images, targets)

    monkeypatch.setattr(Criterion, "__call__", spy)
    model = build(Arch.from_text(PRUNED, "hybrid-32", (3, 32, 32), 10), seed=0)
    return shares, train(model, load_data("digits", (3, 32, 32)), recipe)


def test_a_training_from_nothing_keeps_as_many_tokens_as_inference_and_learns(monkeypatch):
    shares, result = _trained(monkeypatch, Recipe(epochs=3, batch_size=16))
    assert set(shares) == {0.5}
    assert result.val_accuracy > 0.5  # chance is 0.1


def test_decisions_from_nothing_move_the_scores_and_not_what_they_read():
    for draws in (True, False):
        prune = dv._Prune(16, dv.BareSelect(4)).train()
        prune.draws = draws
        tokens = torch.randn(2, 8, 16, requires_grad=True)
        _, kept = prune(tokens, tokens[:, :, 0].unsqueeze(1)[:, :0])
        (kept * torch.randn_like(kept)).sum().backward()
        assert (tokens.grad is not None and bool(tokens.grad.any())) is draws
        assert all(bool(weight.grad.any()) for weight in prune.score.parameters())


def test_a_recipe_may_draw_tokens_one_by_one(monkeypatch):
    shares, _ = _trained(monkeypatch, Recipe(epochs=1, keep="draw"))
    assert len(set(shares)) > 3


def test_a_network_that_weights_are_loaded_into_keeps_as_many_tokens_in_training_too():
    network = build(small("lvvit")).train()
    with torch.no_grad():
        kept = network.streams(torch.randn(2, *network.arch.input_shape))["kept"]
    counts = [block.count for block in network.modules() if isinstance(block, dv._Prune)]
    assert kept.sum(2).tolist() == [counts] * 2
