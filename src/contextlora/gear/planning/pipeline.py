"""Layer pipelines: what a batch costs for given stages, and where to cut the layers.

p stages, m micro-batches; stage s takes f_s forward and b_s backward for one micro-batch, sending included.

    1F1B    sum(f_s + b_s) + (m - 1) max(f_s + b_s)
    GPipe   sum(f_s + b_s) + (m - 1) (max f_s + max b_s)

With equal stages and free links both are (m + p - 1)(f + b).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# More cuts than these are not weighed for one row of devices; the best come first.
MAX_CUTS = 8


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one micro-batch in one stage: forward, backward, forward-only pass of the prerequisite chain."""

    forward_s: float
    backward_s: float
    chain_s: float


def pipeline_s(times: Sequence[StageTimes], num_micro: int, layout: str) -> float:
    """Forwards and backwards of one batch, from an empty pipeline to an empty one."""
    once = sum(time.forward_s + time.backward_s for time in times)
    slowest = max(time.forward_s + time.backward_s for time in times)
    if layout == "gpipe":
        # All forwards, then all backwards: each phase runs at the pace of its own slowest stage.
        slowest = max(time.forward_s for time in times) + max(time.backward_s for time in times)
    return once + (num_micro - 1) * slowest


def chain_s(times: Sequence[StageTimes], num_passes: int, num_micro: int) -> float:
    """The passes of a chain through a pipeline; each needs the answers of the one before, so that it drains.

    Args:
        times: of the stages.
        num_passes: n.
        num_micro: micro-batches.
    """
    if not num_passes or not num_micro:
        return 0.0
    once, slowest = sum(time.chain_s for time in times), max(time.chain_s for time in times)
    return num_passes * (once + (num_micro - 1) * slowest)


def best_cuts(
    times_of: Callable[[int, range], StageTimes | None],
    num_stages: int,
    num_layers: int,
    num_micro: int,
    exact: bool = True,
) -> list[tuple[int, ...]]:
    """Cut points worth weighing, found by dynamic programming over (stage, layers so far).

    What a pipeline costs depends on six figures of its stages only, sums and maxima of their times, and rises with
    each. The programme keeps every partial cutting that no other beats in all six: the best one for any number of
    micro-batches and passes is among them.

    Args:
        times_of: (stage, layers) -> seconds, or None where these layers do not fit the stage's device.
        num_stages, num_layers: p and L.
        num_micro: m, to sort the outcome by.
        exact: otherwise only the partial cutting with the fastest slowest stage is kept, which takes L^2 p operations.

    Returns:
        At most `MAX_CUTS` tuples of p - 1 cut points, the best for 1F1B first; none where nothing fits.
    """
    fronts: dict[int, dict[tuple[int, ...], tuple[float, ...]]] = {0: {(): (0.0,) * 6}}  # by layers so far
    for stage in range(num_stages):
        is_last = stage == num_stages - 1
        # Every later stage needs a layer too.
        stops = [num_layers] if is_last else range(stage + 1, num_layers - num_stages + stage + 2)
        grown = {}
        for stop in stops:
            reached = {}
            for start, front in fronts.items():
                times = times_of(stage, range(start, stop)) if start < stop else None
                if times is not None:
                    for cuts, figures in front.items():
                        reached[cuts if is_last else (*cuts, stop)] = _add(figures, times)
            grown[stop] = _undominated(reached) if exact else dict(sorted(reached.items(), key=_slowest)[:1])
        fronts = grown
    found = fronts.get(num_layers, {})
    return sorted(found, key=lambda cuts: found[cuts][0] + (num_micro - 1) * found[cuts][1])[:MAX_CUTS]


def _add(figures: tuple[float, ...], times: StageTimes) -> tuple[float, ...]:
    """(sum train, max train, max forward, max backward, sum chain, max chain) with one stage more."""
    train_s = times.forward_s + times.backward_s
    return (
        figures[0] + train_s,
        max(figures[1], train_s),
        max(figures[2], times.forward_s),
        max(figures[3], times.backward_s),
        figures[4] + times.chain_s,
        max(figures[5], times.chain_s),
    )


def _slowest(reached: tuple[tuple[int, ...], tuple[float, ...]]) -> tuple[float, float]:
    return reached[1][1], reached[1][0]


def _undominated(reached: dict[tuple[int, ...], tuple[float, ...]]) -> dict[tuple[int, ...], tuple[float, ...]]:
    kept: dict[tuple[int, ...], tuple[float, ...]] = {}
    # Sorted, so that none is beaten by one that comes later: a single pass is enough.
    for cuts, figures in sorted(reached.items(), key=lambda item: item[1]):
        if not any(all(a <= b for a, b in zip(other, figures, strict=True)) for other in kept.values()):
            kept[cuts] = figures
    return kept
