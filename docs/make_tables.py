"""The tables of `docs/tables.md`: published networks, spaces, shipped latency tables, scores; most of the last
one stands in the README, too. Run it when one of them changes.

python docs/make_tables.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.report import answers
from nas.search import known, verdicts

FILE = Path(__file__).with_name("tables.md")
README = Path(__file__).parents[1] / "README.md"
MARKS = "<!-- scores: written by docs/make_tables.py -->", "<!-- end of scores -->"


def text() -> str:
    """The whole file."""
    tables = answers.tables()
    parts = [
        "# Networks, spaces, tables",
        "Written by `docs/make_tables.py`; a test holds it current.",
        "## Published networks",
        "Top-1 on ImageNet at the size of the images, as their authors report it; a dash where no figure was found. "
        "Recipes differ and make for a part of the differences. Parameters and MACs are counted here (convolutions, "
        "linears, matrix products; training form). On a device: `nas shortlist`.",
        _table(
            ("network", "input", "top-1", "parameters", "MACs", "weights in timm", "source; recipe"),
            map(_preset, answers.presets()),
        ),
        "## Spaces",
        "Rows are what a table needs for all of a space; minutes are of ONNX Runtime on one core.",
        _table(("space", "input", "networks", "rows", "op rows", "minutes to profile"), map(_space, _spaces())),
        "## Shipped latency tables",
        "Cards are of networks that a table was not fitted on (`nas validate`); in brackets what chance allows.",
        _table(
            ("table", "rows", "networks", "card", "off", "bias", "within 5 %, 10 %", "Kendall", "in the 90 % interval"),
            (_shipped(table) for table in tables),
        ),
        "Of these spaces none is shipped; one command each makes it: "
        + ", ".join(f"`nas profile {name}`" for name in _unshipped(tables))
        + ".",
        "## Scores",
        scores(),
    ]
    return "\n\n".join(parts) + "\n"


def readme() -> str:
    """The whole README, with the table of scores as it is now."""
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n\n{scores(brief=True)}\n\n{MARKS[1]}{after}"


def scores(*, brief: bool = False) -> str:
    """How well scores rank the networks of the shipped truth; in brief without most combinations and settings."""
    found = known.read()
    low, high = (f"{macs / 1e6:.1f}" for macs in found["macs_band"])
    ceiling = found["ceiling"]
    alone = [each for each in found["scores"] if not each["of"]]
    combined = [each for each in found["scores"] if each["of"]]
    models = [each for each in found["predictors"] if each["from"] != verdicts.SCORES]
    if brief:
        alone = [each for each in alone if each["name"].startswith("short") or ":" not in each["name"]]
        alone = [each for each in alone if each["name"] != "size"]  # MACs
        combined = [
            each for each in combined if each["name"] == verdicts.RIDGE and not any(map(_is_trained, each["of"]))
        ]
        combined = sorted(combined, key=lambda each: len(each["of"]))[-1:]
        models = [each for each in models if each["of"] == [] or sum(map(_is_trained, each["of"])) == 1]
    rows = [_score(each["name"], each, found["networks"]) for each in alone]
    rows += [_score(f"{each['name']} of {', '.join(each['of'])}", each, found["networks"]) for each in combined]
    rows += [
        _score(
            f"`guided`'s model after {each['labels']} trainings, from {', '.join(('choices', *each['of']))}",
            each,
            found["networks"],
        )
        for each in models
    ]
    rows.append(("a perfect score", _short(ceiling["kendall_band"]), _short(ceiling["kendall"]), "", ""))
    return (
        f"Kendall's tau with test accuracy, over {found['networks']} networks of `hybrid-32` ({found['trainings']} "
        f"trainings on Fashion-MNIST), {found['networks_band']} of them in a band of {low} to {high} M MACs; in "
        "brackets what 90 % of resamples leave. Regret: points of accuracy between the best of the band and the best "
        "of three favourites. Seconds of one core.\n\n"
        + _table(("score", "in the band", "over all", "regret", "seconds each (once)"), rows)
    )


def _is_trained(score: str) -> bool:
    """Whether a training stands behind a score."""
    return score.startswith(("supernet", "prior", "short"))


def _score(name: str, each: Mapping[str, Any], of: int) -> Sequence[str]:
    counted = f" ({each['networks']} networks)" if each.get("networks", of) < of else ""
    regret = "" if each.get("regret_band") is None else f"{100 * each['regret_band']:.2f}"
    seconds = "" if each.get("seconds") is None else f"{each['seconds']:{'.0f' if each['seconds'] >= 10 else '.2g'}}"
    once = f" ({each['once_seconds']:.0f})" if each.get("once_seconds", 0) >= 10 else ""
    return f"{name}{counted}", _interval(each, "_band"), _interval(each, ""), regret, seconds + once


def _interval(each: Mapping[str, Any], part: str) -> str:
    values = [each[f"kendall{key}{part}"] for key in ("", "_low", "_high")]
    return "-" if None in values else "{} [{}, {}]".format(*map(_short, values))


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def _spaces() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answers.spaces()["spaces"]
    return found


def _unshipped(tables: Sequence[dict[str, Any]]) -> list[str]:
    """The spaces that no shipped table holds."""
    shipped = {space for table in tables for space in table["spaces"]}
    return [space["space"] for space in _spaces() if space["space"] not in shipped]


def _preset(preset: dict[str, Any]) -> Sequence[str]:
    top1 = "-" if preset["top1"] is None else f"{100 * preset['top1']:.1f}"
    said = "; ".join(filter(None, (preset["source"], preset["recipe"]))) or "-"
    weights = f"`{preset['weights']}`" if preset["weights"] else "-"
    side = str(preset["input"][-1])
    return (f"`{preset['name']}`", side, top1, f"{preset['params']:,}", f"{preset['macs']:,}", weights, said)


def _space(space: dict[str, Any]) -> Sequence[str]:
    counts = (f"{space['archs']:,}", str(space["rows"]), str(space["op_rows"]))
    return (f"`{space['space']}`", str(space["input"][-1]), *counts, f"{space['minutes_to_profile']:g}")


def _shipped(table: dict[str, Any]) -> Sequence[str]:
    predicted = f" ({table['unmeasured_rows']} predicted)" if table["unmeasured_rows"] else ""
    begin = (f"`{table['name']}`", f"{table['rows']}{predicted}", str(table["networks"]))
    card = table["card"]
    if card is None:
        return (*begin, "none", f"{table['mape_percent']:.1f} % held out", "", "", "", "")
    covered = "-"
    if card["coverage_percent"] is not None:
        low, high = card["coverage_band_percent"]
        covered = f"{card['coverage_percent']:.0f} % ({low:.0f} to {high:.0f})"
    return (
        *begin,
        f"{len(card['networks'])} networks",
        f"{card['mape_percent']:.1f} %",
        f"{card['bias_percent']:+.1f} %",
        f"{card['within_5_percent']:.0f} %, {card['within_10_percent']:.0f} %",
        f"{card['kendall']:.3f}",
        covered,
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
