"""DynamicViT (arXiv:2106.02034): plain vision transformers that drop the patch tokens which matter least.

Small prediction modules in front of some blocks score the patch tokens. Inference gathers the best of them, so every
block has a fixed number of tokens and a row of a table; which tokens these are depends on the image. Training keeps all
tokens, draws which are kept (Gumbel-softmax), and hides the others from attention, so that gradients reach the scores.
That is for hosts that are trained already (`_Prune.draws`). From nothing exactly as many as at inference are drawn, and
scores read the tokens without moving them: through scores that are noise, the gradients of decisions and of the missed
ratio reach the host as noise, and a small one ends at chance.
Hosts are DeiT (`search_spaces/deit.py`) and LV-ViT (arXiv:2104.10858), whose residuals add half of each branch and
whose classifier reads all tokens.

What the losses of training need stands in the network's streams behind its last block, in training mode:

- `kept` (N, selections, T): for every selection 1 for the patches that are still kept, else 0. Gradients reach the
  scores through it; the last one is the final mask. In eval there are no such decisions: (N, 0, T).
- `tokens` (N, 1 + T, C): all tokens behind the final norm, the class token first. LV-ViT compares their logits: its
  last block's module has `token_logits(tokens)`.

Differences from the paper follow the published code: one Linear makes the local and the global half, the first of the
two scores is that of keeping, and dropped tokens keep an epsilon of attention in training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import Arch, Blocks
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, cut, fix
from nas.core.errors import InputError
from nas.core.ops import Block, Conv, LayerNorm, Leaf, Linear, Op, Shape, from_stage, in_order, one_of
from nas.core.space import Either, Space, Stage, fill
from search_spaces import Published
from search_spaces.deit import ClassAndPositions, ClassToken, Patchify, PatchTokens, ViTBlock

# ops


@dataclass(frozen=True)
class LocalGlobal(Op):
    """The second half of the channels becomes its mean over all tokens (sec. 3.2).

    Shape: (N, n, dim) -> same. In training a second input (N, n), 1 or 0, says which tokens the mean is over.
    """

    dim: int

    def body(self) -> nn.Module:
        return _LocalGlobal(self.dim)

    def wires(self, *given: Layout) -> Wires | None:
        cut(given[0], [self.dim // 2, self.dim - self.dim // 2])
        return Wires(given[:1], {})


class _LocalGlobal(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local = dim // 2

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        local, spread = x[..., : self.local], x[..., self.local :]
        if keep is None:
            mean = spread.mean(1, keepdim=True)
        else:
            weights = keep / keep.sum(1, keepdim=True).clamp_min(1)
            mean = (weights.unsqueeze(2) * spread).sum(1, keepdim=True)
        return torch.cat([local, mean.expand_as(spread)], 2)


@dataclass(frozen=True)
class TokenSelect(Op):
    """The class token, and behind it the `count` patch tokens most likely kept, best first.

    Shape: tokens (N, 1 + n, C), logits of keep and drop (N, n, 2) -> (N, 1 + count, C).
    """

    front: ClassVar[int] = 1  # class tokens

    count: int

    def body(self) -> nn.Module:
        return _TokenSelect(self)

    def wires(self, *given: Layout) -> Wires | None:
        x, scores = given
        fix(scores)
        return Wires([x], {})


class _TokenSelect(nn.Module):
    def __init__(self, op: TokenSelect) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        front, best = self.op.front, self.best(scores)
        patches = x[:, front:].gather(1, best.unsqueeze(2).expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, :front], patches], 1) if front else patches

    def best(self, scores: Tensor) -> Tensor:
        """Which patch tokens are kept of those that arrive, (N, count); the order is that of the probabilities."""
        keep, drop = scores.unbind(2)
        return (keep - drop).topk(self.op.count, 1).indices


def kept_tokens(calls: Iterable[tuple[Leaf, tuple[Tensor, ...]]]) -> list[Tensor]:
    """Which patch tokens are left behind each of a network's `TokenSelect`s.

    Args:
        calls: all of them in order and what they were given, by `nas.networks.inside.inputs_of`.

    Returns:
        A mask each over all patches in raster order, (N, T) bool.
    """
    found: list[Tensor] = []
    for leaf, (_, scores) in calls:
        if not found:  # the first selection still sees all patches
            count, patches = scores.shape[:2]
            alive = torch.arange(patches).expand(count, -1)
        alive = alive.gather(1, cast(_TokenSelect, leaf.body).best(scores))
        found.append(torch.zeros(count, patches, dtype=torch.bool).scatter(1, alive, True))
    return found


@dataclass(frozen=True)
class BareSelect(TokenSelect):
    """`TokenSelect` where there is no class token. Shape: (N, n, C), (N, n, 2) -> (N, count, C)."""

    front: ClassVar[int] = 0


@dataclass(frozen=True)
class AddBest(Op):
    """For every class the class token's logit plus half the largest logit of a patch token.

    LV-ViT (arXiv:2104.10858). Shape: (N, classes), (N, n, classes) -> (N, classes). In training a third input (N, n),
    1 or 0, says which patch tokens count.
    """

    def body(self) -> nn.Module:
        return _AddBest()


class _AddBest(nn.Module):
    def forward(self, x: Tensor, patches: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None:
            return x + 0.5 * patches.amax(1)
        best = patches.masked_fill(keep.unsqueeze(2) < 0.5, -torch.inf).amax(1)
        return x + 0.5 * best.masked_fill(best == -torch.inf, 0)  # where nothing is kept


# blocks


@dataclass(frozen=True)
class Undecided(Block):
    """No decision so far about any patch token. Tokens (N, 1 + T, C) -> decisions (N, 0, T)."""

    gives = ("kept",)
    select: ClassVar[type[TokenSelect]] = TokenSelect

    def build(self, x: Shape) -> nn.Module:
        return _Undecided(self.select.front)


class _Undecided(nn.Module):
    def __init__(self, front: int) -> None:
        super().__init__()
        self.front = front

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()[:, self.front :, 0].unsqueeze(1)[:, :0]


@dataclass(frozen=True)
class BareUndecided(Undecided):
    """`Undecided` where there is no class token. Tokens (N, T, C) -> decisions (N, 0, T)."""

    select: ClassVar[type[TokenSelect]] = BareSelect


@dataclass(frozen=True)
class Prune(Block):
    """A prediction module, and the selection that follows from its scores (sec. 3.2).

    Tokens (N, 1 + n, C), decisions (N, selections, T) -> in eval fewer tokens, and the decisions as they are; in
    training the same tokens, and decisions with one more.

    Attributes:
        keep: percentages whose product is the part of the network's T patch tokens that is kept, rounded down: one for
            each selection up to this one, or that part itself.
    """

    takes = ("x", "kept")
    gives = ("x", "kept")
    no_map: ClassVar[str] = "it drops tokens, and those that are left are no map"
    in_host: ClassVar[bool] = False
    select: ClassVar[type[TokenSelect]] = TokenSelect

    keep: tuple[int, ...]

    def build(self, x: Shape, kept: Shape) -> nn.Module:
        return _Prune(x.channels, self.select(self._count(x[1] - self.select.front, kept[2])))

    def _count(self, reaching: int, patches: int) -> int:
        if not self.keep or not all(0 < percent <= 100 for percent in self.keep):
            raise InputError(f"{type(self).__name__}.keep: expected percentages from 1 to 100, got {self.keep}")
        count = int(patches * math.prod(self.keep) // 100 ** len(self.keep))
        if not 0 < count <= reaching:
            raise InputError(f"{self}: keeps {count} of {patches} patch tokens, but {reaching} reach it")
        return count

    def prepare(self, body: nn.Module, recipe: Any) -> None:
        cast(_Prune, body).draws = recipe.keep == "draw"

    @staticmethod
    def loss(blocks: Sequence[Any], streams: Mapping[str, Any], recipe: Any) -> Tensor | None:
        if recipe.keep != "draw" or not recipe.ratio:
            return None
        ratios = [math.prod(block.keep) / 100 ** len(block.keep) for block in blocks]
        kept = streams["kept"]
        return cast(Tensor, recipe.ratio * ratio_loss(kept, torch.tensor(ratios, device=kept.device)))


def ratio_loss(kept: Tensor, ratios: Tensor) -> Tensor:
    """Mean squared difference of the share of tokens kept, from decisions (N, S, T), and the ratios asked for (S,).

    Sec. 3.3, eq. 9.
    """
    return (kept.mean(2) - ratios).square().mean()


class _Prune(nn.Module):
    draws = False  # one by one in training, as published; else as many as inference keeps

    def __init__(self, dim: int, select: TokenSelect) -> None:
        super().__init__()
        self.front = select.front
        self.embed = nn.Sequential(LayerNorm(dim).module(), Linear(dim, dim, act="gelu").module())
        self.mix = LocalGlobal(dim).module()
        hidden = Linear(dim, dim // 2, act="gelu"), Linear(dim // 2, dim // 4, act="gelu")
        self.score = in_order(*hidden, Linear(dim // 4, 2))
        self.select = select.module()
        self.count = select.count

    def forward(self, x: Tensor, kept: Tensor) -> tuple[Any, Tensor]:
        seen = x[:, self.front :]
        if self.training and not self.draws:
            seen = seen.detach()  # what learns from nothing is not moved by decisions, which are noise at first
        scores = self.score(self.mix(self.embed(seen), *current(kept)))
        if self.training:
            before = current(kept)
            keep = draw(scores, *before) if self.draws else draw_count(scores, self.count, *before)
            return x, torch.cat([kept, keep.unsqueeze(1)], 1)
        return self.select(x, scores), kept


@dataclass(frozen=True)
class BarePrune(Prune):
    """`Prune` where there is no class token. Tokens (N, n, C), decisions -> tokens, decisions."""

    select: ClassVar[type[TokenSelect]] = BareSelect


def current(kept: Tensor) -> tuple[Tensor, ...]:
    """The last of the decisions (N, selections, T), if there is one; there is none in eval."""
    return (kept[:, -1],) if kept.shape[1] else ()


def draw(scores: Tensor, *before: Tensor) -> Tensor:
    """Which patch tokens are kept, 1 or 0, at random; what was dropped before stays dropped (sec. 3.2).

    Gumbel-softmax (arXiv:1611.01144) of temperature 1, in fp32 at least: forward a hard decision, backward a soft one.
    The noise is that of torch's global generator.

    Args:
        scores: logits of keep and drop, (N, n, 2).
        before: the decision (N, n) before this one, if there is one.
    """
    log_probs = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(2)
    keep = F.gumbel_softmax(log_probs, hard=True)[..., 0]
    return keep * before[0] if before else keep


def draw_count(scores: Tensor, count: int, *before: Tensor) -> Tensor:
    """Which `count` patch tokens are kept, 1 or 0, at random among those that were kept before.

    The best after the noise of `draw` (as arXiv:1903.06059 draws without replacement), as many as inference keeps: the
    network learns from as many tokens as it will see. Backward a soft decision, the sigmoid of the distance from the
    threshold.

    Args:
        scores: logits of keep and drop, (N, n, 2).
        count: how many.
        before: the decision (N, n) before this one, with `count` tokens or more, if there is one.
    """
    keep, drop = scores.to(torch.promote_types(scores.dtype, torch.float32)).unbind(2)
    noise = torch.empty_like(scores[..., :2], dtype=keep.dtype).exponential_().log()
    noisy = keep - drop + noise[..., 1] - noise[..., 0]
    if before:
        noisy = noisy.masked_fill(before[0] < 0.5, -torch.inf)
    best = noisy.detach().topk(count, 1)
    hard = torch.zeros_like(noisy).scatter(1, best.indices, 1.0)
    soft = torch.sigmoid(noisy - best.values[:, -1:])
    return hard - soft.detach() + soft


@dataclass(frozen=True)
class PrunedViTBlock(ViTBlock):
    """A `ViTBlock` behind a selection: in training no token attends to those that are dropped (sec. 3.3).

    Tokens, decisions -> tokens.
    """

    takes = ("x", "kept")

    def build(self, x: Shape, kept: Shape) -> nn.Module:  # type: ignore[override]  # another stream
        return _PrunedViTBlock(*self.residuals(x.channels))


class _PrunedViTBlock(nn.Sequential):
    def forward(self, x: Tensor, kept: Tensor) -> Any:  # type: ignore[override]  # two tensors
        attention, mlp = self
        seen = (F.pad(keep, (1, 0), value=1.0) for keep in current(kept))  # the class token is kept
        return mlp(attention(x, *seen))


@dataclass(frozen=True)
class LVStem(Block):
    """LV-ViT's way into tokens: 7x7 and two 3x3 convolutions with batch norm and ReLU, then patches.

    Image -> tokens (N, 1 + (side / patch)**2, cout), the class token first.

    Attributes:
        stem: channels of the convolutions; the first has stride 2.
        patch: pixels from one token to the next.
    """

    prefix_tokens: ClassVar[int] = 1

    cout: int = from_stage()
    stem: int = 64
    patch: int = 16

    def build(self, x: Shape) -> nn.Module:
        if self.patch % 2 or x.side % self.patch:
            raise InputError(f"LVStem patch={self.patch}: expected an even divisor of the side, {x.side}")
        layers = (
            Conv(x.channels, self.stem, 7, 2, act="relu"),
            Conv(self.stem, self.stem, 3, act="relu"),
            Conv(self.stem, self.stem, 3, act="relu"),
            Patchify(self.stem, self.cout, self.patch // 2),
            ClassAndPositions(self.cout, (x.side // self.patch) ** 2),
        )
        return in_order(*layers)


@dataclass(frozen=True)
class PrunedClassToken(ClassToken):
    """The class token behind a layer norm, and in training all tokens. Tokens -> vector (N, C), tokens."""

    gives = ("x", "tokens")

    def build(self, x: Shape) -> nn.Module:
        return _PrunedClassToken(LayerNorm(x.channels, self.eps))


class _PrunedClassToken(nn.Module):
    def __init__(self, norm: LayerNorm) -> None:
        super().__init__()
        self.norm = norm.module()

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        if self.training:
            x = self.norm(x)
            return x[:, 0], x
        return self.norm(x[:, 0]), x[:, :0]


@dataclass(frozen=True)
class NormedTokens(Block):
    """Layer norm. Tokens -> the class token (N, C), all tokens."""

    gives = ("x", "tokens")

    eps: str = "1e-5"

    def build(self, x: Shape) -> nn.Module:
        return _NormedTokens(LayerNorm(x.channels, self.eps))


class _NormedTokens(nn.Module):
    def __init__(self, norm: LayerNorm) -> None:
        super().__init__()
        self.norm = norm.module()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        return x[:, 0], x


@dataclass(frozen=True)
class DenseLogits(Block):
    """LV-ViT's classifiers, one for the class token and one for every patch token that is left; see `AddBest`.

    Class token (N, C), all tokens, decisions -> logits (N, classes).
    """

    takes = ("x", "tokens", "kept")

    classes: int = from_stage()

    def build(self, x: Shape, tokens: Shape, kept: Shape) -> nn.Module:
        return _DenseLogits(x.channels, self.classes)


class _DenseLogits(nn.Module):
    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.first, self.patches = (Linear(dim, classes).module() for _ in range(2))
        self.add = AddBest().module()

    def forward(self, x: Tensor, tokens: Tensor, kept: Tensor) -> Any:
        return self.add(self.first(x), self.patches(tokens[:, 1:]), *current(kept))

    def token_logits(self, tokens: Tensor) -> Tensor:
        """The logits of the class token by itself and of every patch token. (N, 1 + n, C) -> (N, 1 + n, classes)."""
        return torch.cat([self.first(tokens[:, :1]), self.patches(tokens[:, 1:])], 1)


# how they go together


@dataclass(frozen=True)
class Thinned(Stage):
    """All blocks of a host, with selections at even distances between them.

    Choices that say nothing leave no trace: where selections begin and how far apart they are without them, and
    selections with no block behind them.

    Attributes:
        entry: the block that makes tokens; its `cout` is the width.
        body: the host's block.
        width: choice of channels.
        depth: choice of the number of the host's blocks.
        selections: choice of how often tokens are dropped.
        first: choice of the number of blocks before the first selection.
        every: choice of the number of blocks from one selection to the next.
        keep: choice of the percentage of patch tokens that each selection keeps.
    """

    entry: Block
    body: ViTBlock
    width: Any
    depth: Any
    selections: Any
    first: Any
    every: Any
    keep: Any

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        places = [picked["first"] + number * picked["every"] for number in range(picked["selections"])]
        entry = fill(self.entry, picked, cout=picked["width"])
        body = cast(ViTBlock, fill(self.body, picked))
        return (entry, *thinned(body, picked["depth"], places, _each([picked["keep"]] * len(places))))

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        bodies = [block for block in blocks if isinstance(block, (ViTBlock, Prune))]
        prunes = [place for place, block in enumerate(bodies) if isinstance(block, Prune)]
        places = [place - number for number, place in enumerate(prunes)]
        found = {"width": getattr(blocks[0], "cout", None), "depth": len(bodies) - len(prunes)}
        found |= {"selections": len(places)}
        if places:
            found |= {"first": places[0], "keep": cast(Prune, bodies[prunes[0]]).keep[0]}
        if len(places) > 1:
            found |= {"every": places[1] - places[0]}
        return found


def thinned(body: ViTBlock, depth: int, places: Sequence[int], keep: Sequence[tuple[int, ...]]) -> Blocks:
    """So many blocks of a host, with a selection before each of these places, whose `Prune.keep` are these."""
    values = {item.name: getattr(body, item.name) for item in dataclasses.fields(body)}
    blocks: list[Block] = [Undecided()]
    for place in range(depth):
        if place in places:
            blocks.append(Prune(keep[places.index(place)]))
        blocks.append(body if place < min(places, default=depth) else PrunedViTBlock(**values))
    return tuple(blocks)


def _each(keep: Sequence[int]) -> list[tuple[int, ...]]:
    """`Prune.keep` of selections that each keep a percentage of what reaches them."""
    return [tuple(keep[: number + 1]) for number in range(len(keep))]


DEIT_HEAD, LV_HEAD = (PrunedClassToken(), Logits(heads=1)), (NormedTokens(), DenseLogits())


def head(last: Blocks) -> Blocks:
    """The head of the host that the blocks are of."""
    return LV_HEAD if isinstance(last[0], LVStem) else DEIT_HEAD


DEIT, LVVIT = (PatchTokens(), ViTBlock(4)), (LVStem(), ViTBlock(3, bias=False, eps="1e-5", branch=50))
STEPS = one_of(2, 3, 4, 5)
CUTS: dict[str, Any] = {
    "selections": one_of(0, 1, 2, 3),
    "first": STEPS,
    "every": STEPS,
    "keep": one_of(50, 60, 70, 80, 90),
}

SPACE = Space(
    name="dynamicvit",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Either.of(
            deit=Thinned(*DEIT, one_of(192, 256, 320, 384, 512, 768), one_of(8, 10, 12, 14, 16), **CUTS),
            lvvit=Thinned(*LVVIT, one_of(256, 384, 512), one_of(12, 16, 20), **CUTS),
        ),
    ),
    head=head,
)

TWICE, DEPTHS = one_of(1, 2), one_of(3, 4, 5)
SMALL_CUTS: dict[str, Any] = {"selections": one_of(0, 1, 2), "first": TWICE, "every": TWICE, "keep": one_of(50, 70)}
SMALL_DEIT = PatchTokens(patch=4), ViTBlock(4, head_dim=16)
SMALL_LVVIT = LVStem(stem=16, patch=4), dataclasses.replace(LVVIT[1], head_dim=16)

SMALL = Space(
    name="dynamicvit-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Either.of(
            deit=Thinned(*SMALL_DEIT, one_of(32, 48), DEPTHS, **SMALL_CUTS),
            lvvit=Thinned(*SMALL_LVVIT, 48, DEPTHS, **SMALL_CUTS),
        ),
    ),
    head=head,
)

SPACES = (SMALL,)


def make(
    host: tuple[Block, ViTBlock],
    width: int,
    depth: int,
    places: Sequence[int] = (),
    keep: Sequence[int] = (),
    *,
    of_all: bool = False,
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A DynamicViT of any size, on the grid of the shipped space or off it.

    Args:
        host: the block that makes tokens and the block behind it: `DEIT`, `LVVIT`, or the like.
        width: channels, a multiple of the block's `head_dim`.
        depth: number of the host's blocks.
        places: the blocks, counted from 0, before which tokens are dropped; none for the host alone.
        keep: for each of them the percentage that it keeps of the patch tokens that reach it.
        of_all: whether these are percentages of all patch tokens instead, which do not rise: 90, 80, 70 are not a
            constant part of each other.
        side: input side in pixels.
        classes: number of logits.

    Raises:
        InputError: places do not ascend or are not inside the network, there are not as many percentages, or those of
            all tokens rise.
    """
    if sorted(set(places)) != list(places) or not all(0 <= place < depth for place in places):
        raise InputError(f"places: expected ascending numbers of blocks from 0 to {depth - 1}, got {list(places)}")
    if len(places) != len(keep):
        raise InputError(f"keep: expected one percentage for each of {len(places)} places, got {list(keep)}")
    if of_all and list(keep) != sorted(keep, reverse=True):
        raise InputError(f"keep: percentages of all patch tokens never rise, got {list(keep)}")
    entry, body = host
    parts = [(percent,) for percent in keep] if of_all else _each(keep)
    trunk = (fill(entry, {"cout": width}), *thinned(body, depth, places, parts))
    behind = tuple(fill(block, {"classes": classes}) for block in head(trunk))
    return Arch("dynamicvit", (3, side, side), classes, (trunk, behind))


HOSTS: Mapping[str, tuple[tuple[Block, ViTBlock], int, int]] = {
    "deit-t": (DEIT, 192, 12),
    "deit-256": (DEIT, 256, 12),
    "deit-s": (DEIT, 384, 12),
    "deit-b": (DEIT, 768, 12),
    "lvvit-s": (LVVIT, 384, 16),
    "lvvit-m": (LVVIT, 512, 20),
}


def published(name: str, keep: int) -> Arch:
    """One of `HOSTS` with selections after each quarter of its blocks but the last; each keeps so many percent."""
    host, width, depth = HOSTS[name]
    return make(host, width, depth, [depth // 4 * quarter for quarter in (1, 2, 3)], [keep] * 3)


KEPT = {
    "deit-t": (70,),
    "deit-256": (70,),
    "deit-s": (90, 80, 70, 60, 50),
    "deit-b": (70,),
    "lvvit-s": (90, 80, 70, 50),
    "lvvit-m": (90, 80, 70, 50),
}
PRESETS: Mapping[str, Arch] = {name: make(*HOSTS[name]) for name in ("lvvit-s", "lvvit-m")} | {
    f"dynamicvit-{host}-0.{keep // 10}": published(host, keep) for host, keeps in KEPT.items() for keep in keeps
}

PAPER, TABLE_1 = "arXiv:2106.02034", "arXiv:2106.02034, table 1"
PUBLISHED: Mapping[str, Published] = {
    **{f"lvvit-{size}": Published(top1, TABLE_1, "token labels") for size, top1 in (("s", 0.833), ("m", 0.840))},
    **{
        f"dynamicvit-{name}": Published(top1, source, "30 epochs from its host, distilled from it")
        for name, top1, source in (
            ("deit-s-0.9", 0.798, TABLE_1),
            ("deit-s-0.8", 0.796, TABLE_1),
            ("deit-s-0.7", 0.793, TABLE_1),
            ("deit-256-0.7", 0.7653, "github.com/raoyongming/DynamicViT, README"),
            ("deit-b-0.7", 0.813, PAPER),
            ("lvvit-s-0.9", 0.833, TABLE_1),
            ("lvvit-s-0.8", 0.832, TABLE_1),
            ("lvvit-s-0.7", 0.830, TABLE_1),
            ("lvvit-s-0.5", 0.820, PAPER),
            ("lvvit-m-0.9", 0.839, TABLE_1),
            ("lvvit-m-0.8", 0.839, TABLE_1),
            ("lvvit-m-0.7", 0.838, TABLE_1),
        )
    },
}


def from_host(state: Mapping[str, Tensor], host: Arch, arch: Arch) -> dict[str, Tensor]:
    """The weights of a host, under the names of a network that drops tokens elsewhere or at all; training starts so.

    The weights of prediction modules are not among them.

    Args:
        state: the state dict of our model of `host`.
        host: a DeiT or an LV-ViT.
        arch: the same with other selections.

    Raises:
        InputError: the two have not equally many blocks of the host.
    """
    theirs, ours = _places(host), _places(arch)
    if len(theirs) != len(ours):
        raise InputError(f"the host has {len(theirs)} blocks with weights, expected {len(ours)}")
    places = dict(zip(theirs, ours, strict=True))
    split = {name: name.partition(".body.") for name in state}
    return {places[at] + dot + rest: state[name] for name, (at, dot, rest) in split.items() if at in places}


def _places(arch: Arch) -> list[str]:
    """The names of the modules of the blocks that a host has, in order."""
    blocks = (
        (f"stages.{index}.{n}", block) for index, stage in enumerate(arch.stages) for n, block in enumerate(stage)
    )
    return [name for name, block in blocks if not isinstance(block, (Undecided, Prune))]
