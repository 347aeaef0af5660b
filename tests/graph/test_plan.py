import pickle
import subprocess
import sys

import pytest

from contextlora.graph import GraphError, RankPartition, SliceUse, TrainingPlan


def plan():
    """Two roots, two children that use root `a` at different deltas; rank 4 each."""
    uses = {
        "a": SliceUse(("a",)),
        "b": SliceUse(("b",)),
        "c": SliceUse(("c",), {"a": 0.75, "b": 1.0}),
        "d": SliceUse(("d",), {"a": 0.25}),
    }
    return TrainingPlan(RankPartition(dict.fromkeys("abcd", 4)), uses, (("a", "b"), ("c", "d")))


def counts(train, freeze, mask):
    return {"train": train, "freeze": freeze, "mask": mask}


def test_statuses_of_a_stage():
    first, second = plan().stages
    assert plan().statuses(first) == {
        "a": counts(4, 0, 0),
        "b": counts(4, 0, 0),
        "c": counts(0, 0, 4),
        "d": counts(0, 0, 4),
    }
    # of a's ranks, d freezes 1 and c freezes 3, the same one among them: 3 are trained by somebody
    assert plan().statuses(second) == {
        "a": counts(3, 1, 0),
        "b": counts(0, 4, 0),
        "c": counts(4, 0, 0),
        "d": counts(4, 0, 0),
    }
    assert plan().statuses(["c"])["a"] == counts(1, 3, 0)


def test_active_slices_and_edges():
    assert plan().uses["c"].active == ("c", "a", "b")
    assert plan().edges == (("a", "c"), ("b", "c"), ("a", "d"))


def test_a_use_is_a_value():
    deltas = {"a": 1.0}
    use = SliceUse(["c"], deltas)
    deltas["a"] = 0.0
    assert use == SliceUse(("c",), {"a": 1.0}) == pickle.loads(pickle.dumps(use))
    assert len({use, SliceUse(("c",), {"a": 1.0})}) == 1


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: SliceUse(("a",), {"a": 1.0}), "each once"),
        (lambda: SliceUse(()), "at least one slice"),
        (lambda: SliceUse(("a",), {"b": 1.5}), r"in \[0, 1\], got 1.5"),
        (lambda: TrainingPlan(RankPartition({"a": 1}), {"t": SliceUse(("b",))}, (("t",),)), "unknown slice 'b'"),
        (lambda: TrainingPlan(RankPartition({"a": 1}), {"t": SliceUse(("a",))}, (("x",),)), "got \\['x'\\]"),
        (lambda: TrainingPlan(RankPartition({"a": 1}), {"t": SliceUse(("a",))}, ((),)), "got none"),
    ],
)
def test_refuses_what_does_not_fit_together(build, words):
    with pytest.raises(GraphError, match=words):
        build()


def test_graph_is_pure():
    code = (
        "import sys, contextlora.graph; print([m for m in ('torch', 'peft', 'lightning', 'wandb') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
