"""Adaptive delta (`method.delta=auto`): the frozen share of each edge u->v, chosen while v trains.

    gradient      1 - max(0, cos(g_v, g_u)), g_v and g_u the gradients of v's and of u's loss by u's slice: what v wants
                  of it, against what u itself wants of it. Conflict freezes, agreement opens.
    validation    1 at first; a step lower after each validation at which v improved and u was not harmed, else a step
                  higher.
    sensitivity   share of u's ranks that matter to u: the others are open.

A rank that was opened may be frozen again; it then keeps the value that it has. Decisions depend on weights, items and
notes that are part of every checkpoint, so that a resumed run decides alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from contextlora.graph.partition import num_frozen
from contextlora.graph.plan import SliceUse
from contextlora.methods.method import StageView

AUTO = "auto"
STEP = 0.25  # of delta, between two validations
LOSS_TOLERANCE = 0.02  # nats by which a prerequisite's validation loss may rise in a stage
LEAST_IMPORTANCE = 0.5  # times the mean over all ranks: below it a rank matters little


def choose_uses(view: StageView, policy: str, fixed: Mapping[str, float]) -> dict[str, SliceUse]:
    """The uses of the stage's tasks, with the deltas that hold until the next validation.

    Args:
        view: of the stage.
        policy: a name of `POLICIES`.
        fixed: edges "u->v" whose delta stays as it is.
    """
    choose, uses = POLICIES[policy], {}
    for task in view.tasks:
        deltas = view.uses[task].prerequisites
        chosen = {name: choose(view, name, task) for name in deltas if f"{name}->{task}" not in fixed}
        uses[task] = replace(view.uses[task], prerequisites={**deltas, **chosen})
    return uses


def by_gradient(view: StageView, source: str, task: str) -> float:
    """By the angle between the two tasks' gradients, in whole ranks."""
    from torch.nn.functional import cosine_similarity

    cosine = float(cosine_similarity(view.gradient(task, source), view.gradient(source, source), dim=0))
    # Rounding may carry a cosine beyond 1, and a delta must not be negative.
    return _whole_ranks(view, source, 1 - min(1.0, max(0.0, cosine)))


def by_validation(view: StageView, source: str, task: str) -> float:
    """By trying: opens while it helps the one and does not harm the other."""
    source_loss, note = view.validate(source)[1], f"loss/{source}"
    if not view.interval:
        view.notes[note] = source_loss
        return 1.0
    *earlier, latest = (row[f"loss/{task}"] for row in view.history[-view.interval :])
    improves = not earlier or latest < min(earlier)
    opens = improves and source_loss <= view.notes[note] + LOSS_TOLERANCE
    delta = view.uses[task].prerequisites[source]
    return min(1.0, max(0.0, delta - STEP if opens else delta + STEP))


def by_sensitivity(view: StageView, source: str, task: str) -> float:
    """By what u's ranks are to u when the stage begins, in whole ranks."""
    if view.interval:
        return view.uses[task].prerequisites[source]
    importance = view.importance(source, source)  # (layers, ranks)
    matters = importance >= LEAST_IMPORTANCE * importance.mean()
    return _whole_ranks(view, source, float(matters.double().mean()))


def _whole_ranks(view: StageView, source: str, delta: float) -> float:
    rank = view.plan.partition.ranks[source]
    return num_frozen(rank, delta) / rank


# (view, u, v) -> delta of the edge u->v
POLICIES: dict[str, Callable[[StageView, str, str], float]] = {
    "gradient": by_gradient,
    "validation": by_validation,
    "sensitivity": by_sensitivity,
}
