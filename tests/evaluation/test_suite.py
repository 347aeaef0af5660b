"""The figures of a run, from a stand-in whose accuracies are scripted."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from contextlora.evaluation.evaluate import Prediction
from contextlora.evaluation.suite import deployed_context, evaluate_suite, interference, right_context
from contextlora.graph import RankPartition, SliceUse, TaskGraph, TrainingPlan
from contextlora.tasks.task import Item, Task
from contextlora.tasks.taskset import TaskSet

N = 10


@dataclass
class Stub:
    """Gets k of 10 items right, where k is looked up by task, context and active slices, after stage `stage`."""

    right: dict
    taskset: TaskSet
    plan: TrainingPlan
    stage: int = -1
    loads: list = field(default_factory=list)

    @property
    def uses(self):
        return self.plan.uses

    def items(self, task, split):
        return self.taskset.items(task, split)

    def predict(self, task, split, context, use="planned"):
        slices = None if use is None else self.plan.uses[task].active if use == "planned" else use.active
        k = self.right.get((task, context, slices, self.stage), self.right.get((task, context, slices), 5))
        chosen = torch.tensor([0] * k + [1] * (N - k))
        scores = torch.nn.functional.one_hot(chosen, 2).float()
        return Prediction(task, ("w",) * N, scores, torch.zeros(N, dtype=torch.long))

    def predicted_words(self, task, split, items):
        return ["yes" for _ in items]

    def load(self, stage):
        self.stage = stage
        self.loads.append(stage)


@pytest.fixture
def stub():
    needs = {"a": (), "b": (), "c": ("a", "b")}
    tasks = {name: Task(name, above, 2) for name, above in needs.items()}
    splits = {
        (name, split): tuple(
            Item(f"{k}", f"{k}", "?", ("yes", "no"), 0, prerequisites=dict.fromkeys(above, "yes")) for k in range(N)
        )
        for name, above in needs.items()
        for split in ("train", "validation", "test")
    }
    plan = TrainingPlan(
        RankPartition({"a": 1, "b": 1, "c": 1}),
        {"a": SliceUse(("a",)), "b": SliceUse(("b",)), "c": SliceUse(("c",), {"a": 1.0, "b": 1.0})},
        (("a", "b"), ("c",)),
    )
    right = {
        ("a", "gold", None): 3,
        ("a", "gold", ("a",), 0): 9,
        ("a", "gold", ("a",), 1): 8,
        ("a", "predicted", ("a",)): 7,
        ("a", "gold", ("a", "b")): 2,
        ("c", "gold", ("c", "a", "b"), 1): 10,
        ("c", "predicted", ("c", "a", "b")): 6,
    }
    return Stub(right, TaskSet("stub", Path(), tasks, TaskGraph(needs), "", splits), plan)


def test_accuracies_stand_where_they_belong(stub):
    found = evaluate_suite(stub, stub.plan.stages, stub.load, context="gold", split="test")
    assert stub.loads == [0, 1]
    assert found["tasks"]["a"] == {
        "chance": 0.5,
        "zero_shot": pytest.approx(0.3),
        "own_stage": pytest.approx(0.9),
        "final": pytest.approx(0.8),
        "end_to_end": pytest.approx(0.7),
        "n": N,
    }
    assert found["accuracy_matrix"]["c"] == [None, 1.0]
    assert found["tasks"]["c"]["end_to_end"] == pytest.approx(0.6)
    assert found["forgetting"]["a"] == pytest.approx(0.1)
    assert found["backward_transfer"]["a"] == pytest.approx(-0.1)
    assert found["forgetting"]["c"] is None
    assert found["validation"]["c"] == pytest.approx(0.6)
    assert found["bias"]["c"] == pytest.approx(0.4)  # four of ten times the second option, which is never right
    low, high = found["intervals"]["c"]["end_to_end"]
    assert low < 0.6 < high


def test_interference_adds_the_other_prerequisites_plainly(stub):
    stub.load(1)
    found = interference(stub, "gold", "test")
    assert set(found) == {"a with the prerequisites of c", "b with the prerequisites of c"}
    assert found["a with the prerequisites of c"] == {"alone": pytest.approx(0.8), "together": pytest.approx(0.2)}


def test_a_deployed_model_never_sees_right_answers():
    assert [deployed_context(mode) for mode in ("none", "gold", "predicted")] == ["none", "predicted", "predicted"]
    assert [right_context(mode) for mode in ("none", "gold", "predicted")] == ["none", "gold", "gold"]
