"""`nas judge`: how well scores rank networks whose accuracy is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands._app import ANSWERS, app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, print_table, progress_bar, say_filled

NOTE = (
    "Brackets: 90 % of resamples of the networks. Regret: points of accuracy, in the band, between the best network "
    "and the best of the score's three favourites. A perfect score knows accuracy without the noise of training. "
    "Seconds are of one core."
)
NOTE_COMBINED = (
    "Rank average and ridge combine these scores; the ridge predicts each network from the accuracies of all others."
)
NOTE_LABELS = (
    "Mean over draws of the networks that the model of `guided` learns from, and 90 % of the draws, on all the others."
)


@app.command(rich_help_panel=ANSWERS)
def judge(
    scores: Annotated[
        list[str],
        typer.Argument(metavar="SCORE...", help="Evaluators as a request spells them: naswot, 'short: {epochs: 2}'."),
    ],
    truth: Annotated[
        str, typer.Option("--truth", help="Networks really trained: a file, fashion-mnist, or published.")
    ] = "fashion-mnist",
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Images that they learned from; default: what the file's name begins with."),
    ] = None,
    labels: Annotated[
        list[int] | None,
        typer.Option("--labels", help="Also judge the model of guided, taught by so many of the networks; repeatable."),
    ] = None,
    prior: Annotated[
        str,
        typer.Option(
            "--prior",
            help="Also judge what trainings of other networks let expect: a truth, as --truth; auto: what guided takes "
            "by itself; none.",
        ),
    ] = "auto",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Networks scored at once, one thread each.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Judge scores by networks whose accuracy is known.

    Rank correlations with their test accuracy, beside those of parameters and MACs, and beside what a perfect score
    would reach, since trainings differ from seed to seed. In the band networks have about the same MACs, as in a search
    within a budget; over all, size alone ranks well. Several scores are also judged together, and with --labels as what
    a model of accuracy learns from. What was scored before is not scored again.
    """
    from nas.search.judging import judge as find

    with progress_bar() as report:
        found = find(
            scores,
            truth,
            data,
            labels=labels or (),
            prior=prior,
            workers=workers,
            device=device,
            progress=report,
        )
    if as_json:
        return print_json(found)
    say_filled(_heading(found), further="")
    print_table(
        ("Kendall", ">in the band", ">over all", ">regret", ">s each"),
        [_kendall(each) for each in found["scores"]] + [(*_perfect(found, "kendall"), "", "")],
    )
    print_table(
        ("Spearman", ">in the band", ">over all", ">Kendall - MACs', band"),
        [_spearman(each) for each in found["scores"]] + [(*_perfect(found, "spearman"), "")],
    )
    say_filled(f"{NOTE} {NOTE_COMBINED}" if any(each["of"] for each in found["scores"]) else NOTE, further="")
    if found["predictors"]:
        print_table(
            ("labels", "learned from", ">Kendall in the band", ">over all"),
            [
                (str(each["labels"]), each["from"], _estimate(each, "kendall", "_band"), _estimate(each, "kendall", ""))
                for each in found["predictors"]
            ],
        )
        say_filled(NOTE_LABELS, further="")
    remarks = [(each.get("name", "WARNING"), each["remark"]) for each in (found, *found["scores"])]
    for name, remark in dict.fromkeys([*remarks, *(("labels", each["remark"]) for each in found["predictors"])]):
        if remark:
            say_filled(f"{name}: {remark}")


def _heading(found: dict[str, Any]) -> str:
    from nas.core.units import show_count

    def macs(part: str) -> str:
        low, high = found[f"macs{part}"]
        return f"{show_count(low)} to {show_count(high)} MACs"

    low, high = found["accuracy"]
    band = f"{found['networks_band']} of them in the band of {macs('_band')}" if found["macs_band"] else "no band"
    noise = f", {100 * found['noise']:.2g} points from seed to seed" if found["noise"] is not None else ""
    return (
        f"{Path(found['truth']).name}: {found['networks']} networks of {macs('')}, {band}; {found['trainings']} "
        f"trainings ({found['recipe']}, {found['images']:,} images); test accuracy {100 * low:.1f} to "
        f"{100 * high:.1f} %{noise}"
    )


def _kendall(each: dict[str, Any]) -> tuple[str, ...]:
    regret = "" if each["regret_band"] is None else f"{100 * each['regret_band']:.2f}"
    seconds = "" if each["seconds"] is None else f"{each['seconds']:.2g}"
    return (each["name"], _estimate(each, "kendall", "_band"), _estimate(each, "kendall", ""), regret, seconds)


def _spearman(each: dict[str, Any]) -> tuple[str, ...]:
    parts = ("spearman", "_band"), ("spearman", ""), ("kendall_over_macs", "_band")
    return (each["name"], *(_estimate(each, *part) for part in parts))


def _estimate(each: dict[str, Any], statistic: str, part: str) -> str:
    value, low, high = (each[f"{statistic}{key}{part}"] for key in ("", "_low", "_high"))
    return "" if value is None else f"{_short(value)} [{_short(low)}, {_short(high)}]"


def _perfect(found: dict[str, Any], statistic: str) -> tuple[str, ...]:
    values = (found["ceiling"][f"{statistic}{part}"] for part in ("_band", ""))
    return ("a perfect score", *("unknown" if value is None else _short(value) for value in values))


def _short(value: float) -> str:
    """`.43`, `-.06`, `1.00`."""
    return f"{value:.2f}".replace("0.", ".", 1)
