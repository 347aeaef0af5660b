"""Tables and picture of what `bench/gear.py` measured."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from links import LINKS
from variants import ANEW, FLEET_NAMES, FLEETS, GEAR, KEPT, ONE, RIVALS

from contextlora.evaluation.plots import GREY, INK, plt, save_figure
from contextlora.evaluation.report import markdown_table

COLOURS = ("#c8cdd3", "#E69F00", "#CC79A7", "#8d5a97", "#56B4E9", "#0072B2")
TOP = 1.5  # of the picture's ratios; slower ones are cut and carry their figure
NEAR = 0.10


def report(found: Sequence[dict]) -> str:
    """All tables as markdown."""
    cells = [row for row in found if "cell" in row]
    parts = [
        ("Links, measured", _links(found)),
        ("A step with chains: share of one device's time (lower bound of ContextGear likewise)", _anew(cells)),
        ("A whole stage with answers kept: share of one device's time with answers kept", _kept(cells)),
        ("Predicted over measured", _predictions(cells)),
    ]
    tables = "\n".join(f"**{title}**\n\n{markdown_table(*table)}" for title, table in parts)
    return tables + "\n" + "\n".join(f"- {line}" for line in _targets(cells)) + "\n"


def measured(cell: dict, name: str, against: str = "") -> float:
    """Seconds of a variant, or the median over rounds of its ratio to another's."""
    own = cell["variants"][name]["rounds_s"]
    others = cell["variants"][against]["rounds_s"] if against else [1.0] * len(own)
    # Round by round, as both of a round met the same state of the machine.
    return median(a / b for a, b in zip(own, others, strict=True))


def _name(cell: dict) -> list[str]:
    key = cell["cell"]
    return [str(key["n"]), FLEET_NAMES[key["fleet"]], LINKS[key["link"]].name]


def _links(found: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for row in (row for row in found if "network" in row):
        link, fleet = row["network"]
        rates = [x["bandwidth_bits_per_s"] / 1e6 for x in row["links"].values()]
        trips = [2e3 * x["latency_s"] for x in row["links"].values()]
        spread = [f"{min(values):.4g} to {max(values):.4g}" for values in (rates, trips)]
        rows.append([LINKS[link].name, FLEET_NAMES[fleet], str(len(rates)), *spread])
    return ["link", "fleet", "pairs", "Mbit/s", "round trip, ms"], rows


def _anew(cells: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    header = ["n", "fleet", "link", "one device, s", *ANEW[1:]]
    header += ["lower bound", "ContextGear / bound", "best rival", "chosen"]
    rows = []
    for cell in cells:
        one = measured(cell, ONE)
        ratios = [f"{measured(cell, name, ONE):.2f}" for name in ANEW[1:]]
        best = min(RIVALS, key=lambda name: measured(cell, name))
        over = f"{_gear(cell) / cell['bound_s']:.3f}"
        gain = f"{best} {100 * (_gear(cell) / measured(cell, best) - 1):+.0f} %"
        chosen = f"{cell['chosen']['anew']} {100 * _regret(cell, 'anew'):+.1f} %"
        rows.append([*_name(cell), f"{one:.3f}", *ratios, f"{cell['bound_s'] / one:.2f}", over, gain, chosen])
    return header, rows


def _kept(cells: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    names = [name for name in cells[0]["variants"] if name.endswith(KEPT)] if cells else []
    rows = []
    for cell in cells:
        ratios = [f"{measured(cell, name, ONE + KEPT):.2f}" for name in names]
        chosen = f"{cell['chosen']['kept']} {100 * _regret(cell, 'kept'):+.1f} %"
        rows.append([*_name(cell), f"{measured(cell, ONE + KEPT):.3f}", *ratios, chosen])
    return ["n", "fleet", "link", "one device, s a step", *names, "chosen"], rows


def _predictions(cells: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    names = [*ANEW, *(name for name in cells[0]["variants"] if name.endswith(KEPT))] if cells else []
    rows = [[*_name(cell), *(f"{_off(cell, name) + 1:.2f}" for name in names)] for cell in cells]
    return ["n", "fleet", "link", *names], rows


def _gear(cell: dict) -> float:
    """ContextGear, with or without reassignment, as the planner would have it."""
    return measured(cell, GEAR)


def _regret(cell: dict, kind: str) -> float:
    """What the chosen variant takes beyond the best that was measured."""
    names = ANEW if kind == "anew" else [name for name in cell["variants"] if name.endswith(KEPT)]
    return measured(cell, cell["chosen"][kind]) / min(measured(cell, name) for name in names) - 1


def _off(cell: dict, name: str) -> float:
    return cell["variants"][name]["predicted_s"] / measured(cell, name) - 1


def _targets(cells: Sequence[dict]) -> Iterator[str]:
    """What is wanted of ContextGear, and what was measured."""
    equal = [c for c in cells if c["cell"]["fleet"] == "two" and c["cell"]["n"] >= 2]
    if equal:
        worst = max(equal, key=lambda c: _gear(c) / c["bound_s"])
        over = _gear(worst) / worst["bound_s"]
        yield f"two equal devices, n >= 2: ContextGear / bound at most {over:.3f}; wanted 1.05"
    for n, wanted in ((2, 20), (3, 12)):
        for cell in (c for c in equal if c["cell"]["n"] == n and c["cell"]["link"] == "20mbit"):
            less = 1 - _gear(cell) / min(measured(cell, name) for name in RIVALS)
            yield f"20 Mbit/s, n = {n}: {100 * less:.0f} % less time than the best rival; wanted {wanted} %"
    for kind in ("anew", "kept"):
        if cells:
            worst = max(_regret(cell, kind) for cell in cells)
            yield f"chosen with answers {kind}: at most {100 * worst:.1f} % above the best measured; wanted 3 %"
    for what, key in (("the chosen plan", "chosen"), ("all variants", "variants")):
        off = [abs(_off(c, name)) for c in cells for name in _names(c[key])]
        near = sum(value <= NEAR for value in off)
        if off:
            yield f"predicted within 10 % of measured, {what}: {near} of {len(off)} ({100 * near / len(off):.0f} %)"
    spreads = [(max(v["rounds_s"]) / min(v["rounds_s"]) - 1) for c in cells for v in c["variants"].values()]
    if spreads:
        middle, most = 100 * median(spreads), 100 * max(spreads)
        yield f"slowest over fastest round of a variant: {middle:.1f} % in the median, {most:.0f} % at most"


def _names(chosen_or_variants: dict) -> list[str]:
    """Names of the chosen variants, or of all."""
    return [value if isinstance(value, str) else name for name, value in chosen_or_variants.items()]


def draw(found: Sequence[dict], path: Path) -> None:
    """Every variant's share of one device's time: a row for each link, a column for each fleet."""
    cells = {tuple(row["cell"].values()): row for row in found if "cell" in row}
    fleets = [fleet for fleet in FLEETS if any(key[1] == fleet for key in cells)]
    links = [link for link in LINKS if any(key[2] == link for key in cells)]
    size = (1.2 + 3.0 * len(fleets), 0.9 + 2.0 * len(links))
    figure, axes = plt.subplots(
        len(links), len(fleets), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for row, link in zip(axes, links, strict=True):
        for axis, fleet in zip(row, fleets, strict=True):
            _panel(axis, {n: cells[n, fleet, link] for n in (1, 2, 3) if (n, fleet, link) in cells})
            axis.set_title(f"{FLEET_NAMES[fleet]}, {LINKS[link].name}", fontsize=9, loc="left")
    figure.supylabel("time of a step / that of one device", fontsize=9)
    axes[-1][len(fleets) // 2].set_xlabel("n: forward-only passes before each item", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, path)


def _panel(axis: plt.Axes, cells: dict[int, dict]) -> None:
    width = 0.8 / len(ANEW)
    for place, (name, colour) in enumerate(zip(ANEW, COLOURS, strict=True)):
        xs = [n - 0.4 + (place + 0.5) * width for n in cells]
        ratios = [measured(cell, name, ONE) for cell in cells.values()]
        axis.bar(xs, ratios, width, color=colour, label=name)
        for x, ratio in zip(xs, ratios, strict=True):
            if ratio > TOP:
                axis.text(x, TOP - 0.02, f"{ratio:.1f}", ha="center", va="top", fontsize=7, color="white", rotation=90)
    for n, cell in cells.items():
        bound = cell["bound_s"] / measured(cell, ONE)
        label = "lower bound of ContextGear: all busy, nothing to send" if n == min(cells) else None
        axis.plot([n - 0.42, n + 0.42], [bound, bound], color=INK, linewidth=1.2, linestyle=":", label=label)
    axis.axhline(1, color=GREY, linewidth=0.6)
    axis.set(xlim=(0.5, 3.5), ylim=(0, TOP), xticks=(1, 2, 3), xticklabels=[f"n = {n}" for n in (1, 2, 3)])
    axis.spines[["top", "right"]].set_visible(False)
