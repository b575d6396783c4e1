"""`nas describe`, `nas estimate`: what an architecture costs, counted and predicted."""

from __future__ import annotations

from nas.commands._app import ANSWERS, app
from nas.commands._options import ArchArgument, JsonOption, TableOption, read_arch
from nas.commands._output import print_json, print_table, say, say_filled


@app.command(rich_help_panel=ANSWERS)
def describe(arch: ArchArgument, as_json: JsonOption = False) -> None:
    """Show what an architecture is and costs, block by block.

    MACs are multiply-adds of convolutions, linears and matrix products at batch 1, as the papers count them.
    """
    from nas.core.units import show_bytes, show_count
    from nas.report import answers

    found = answers.describe(arch, read_arch)
    if as_json:
        return print_json(found)
    size = "x".join(map(str, found["input"]))
    say((arch, "bold"), f" ({found['arch']}), {found['family']}, input {size}, {found['classes']} classes")
    say(f"{show_count(found['params'])} parameters ({found['params']:,})")
    say(f"{show_count(found['macs'])} MACs ({found['macs']:,})")
    say(f"{show_bytes(found['activation_bytes'])} of activations at most, fp32, batch 1")
    rows = [
        (b["stage"], b["block"], ", ".join(b["inputs"]), show_count(b["params"]), show_count(b["macs"]))
        for b in found["blocks"]
    ]
    print_table(("stage", "block", "inputs", ">parameters", ">MACs"), rows)


@app.command(rich_help_panel=ANSWERS)
def estimate(arch: ArchArgument, table: TableOption, as_json: JsonOption = False) -> None:
    """Predict the latency of an architecture from a table.

    Each block is shown with its share.
    """
    from nas.report import answers

    found = answers.estimate(arch, table, read_arch)
    if as_json:
        return print_json(found)
    low, high = found["predicted_low_ms"], found["predicted_high_ms"]
    interval = f", 90 % between {low:.4g} and {high:.4g} ms" if low is not None else ", no interval known"
    say((f"{found['latency_ms']:.4g} ms", "bold"), f" {found['source']}{interval}")
    if found["unmeasured_percent"]:
        say(f"{found['unmeasured_percent']:.1f} % of it rests on rows that were themselves predicted or imported")
    if found["memory_bytes"] is not None:
        error = f"held-out error {found['memory_mape_percent']:.1f} %"
        say(f"{found['memory_bytes'] / 1e6:.1f} MB of memory at its peak, predicted ({error})")
    if found["this_machine"]:
        say_filled(f"by {table}, measured on a machine like this one")
    else:
        say_filled(f"NOT THIS MACHINE: {table} was measured on {found['cpu']}")
    rows = [(b["stage"], b["block"], b["inputs"], f"{b['us']:.1f}", f"{b['share']:.1%}") for b in found["blocks"]]
    rows.append(("", "outside the blocks", "", f"{found['outside_blocks_us']:.1f}", ""))
    print_table(("stage", "block", "inputs", ">us", ">share"), rows)
