"""`nas feasible`: what budgets leave of a space, before anything is trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nas.commands._app import ANSWERS, app
from nas.commands._options import FixOption, JsonOption, SeedOption, SideOption, TableOption, read_space, read_table
from nas.commands._output import print_json, print_table, say, say_filled


@app.command(rich_help_panel=ANSWERS)
def feasible(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A space (nas spaces lists them).")],
    table: TableOption,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", help="As for nas search: latency_ms<=5, latency_ms<=p40, params<=3e6, ..."),
    ] = None,
    fix: FixOption = None,
    side: SideOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what budgets leave of a space, before anything is trained.

    How many networks fit; the smallest, the median and the largest; the published ones that fit, with the nearest
    that does for each other; and which stage gains most from more time.
    """
    from nas.core.units import show_count
    from nas.search.overview import feasible as find

    found = find(read_space(space, side, fix), read_table(table), budget or (), seed)
    if as_json:
        return print_json(found)
    exact = found["fit_at_least"] == found["fit_at_most"]
    counts = f"{show_count(found['fit'])} of {show_count(found['archs'])}"
    held = "".join(f", {name} of {' or '.join(map(str, values))}" for name, values in found["fix"].items())
    say_filled(
        f"{'' if exact else 'about '}{counts} networks of {found['space']}{held} at {found['input'][-1]} pixels fit "
        f"({100 * found['share']:.3g} %); nothing is lost to rounding"
    )
    for each in found["budgets"]:
        say_filled(_budget(each), indent="  ", further="    ")
    rows = [
        (name, found[name]["arch"], *_figures(found[name], show_count)) for name in ("smallest", "median", "largest")
    ]
    print_table(("", "network", ">ms", ">parameters", ">MACs"), rows)
    if found["presets"]:
        say("published networks")
    for preset in found["presets"]:
        say_filled(_preset(preset), indent="  ", further="    ")
    _say_stages(found, show_count)


def _budget(each: dict[str, Any]) -> str:
    unit = f" {each['unit']}" if each["unit"] else ""
    number = f" is {each['limit']:.4g}{unit}" if "<=p" in each["asked"] else ""
    share = f": kept by {100 * each['share']:.3g} % of all" if each["share"] is not None else ""
    return f"{each['asked']}{number}{share}{'' if each['binds'] else '; DOES NOT BIND, without it as many fit'}"


def _figures(arch: dict[str, Any], show_count: Any) -> tuple[str, str, str]:
    return f"{arch['latency_ms']:.4g}", show_count(arch["params"]), show_count(arch["macs"])


def _preset(preset: dict[str, Any]) -> str:
    begin = f"{preset['name']}, {preset['latency_ms']:.4g} ms: "
    if not preset["misfit"]:
        return f"{begin}fits"
    near = preset["nearest"]
    if near is None:
        return f"{begin}does not fit ({preset['misfit']})"
    changes = ", ".join(f"{name} {before} to {after}" for name, (before, after) in near["changed"].items())
    return (
        f"{begin}does not fit ({preset['misfit']}). The nearest that does, {near['arch']} of "
        f"{near['latency_ms']:.4g} ms, has {changes}"
    )


def _say_stages(found: dict[str, Any], show_count: Any) -> None:
    most = max(each["macs_gained"] for each in found["stages"])
    rows = [
        (
            each["stage"],
            f"{each['median_ms']:.4g}",
            show_count(each["macs_gained"]),
            "binds most" if each["macs_gained"] == most > 0 else "",
        )
        for each in found["stages"]
    ]
    print_table(("stage", ">median ms", f">MACs for {found['more_ms']:.3g} ms more", ""), rows)
