"""The executor without Lightning, on a toy model: the reference is one process that answers everything beforehand."""

import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from contextlora.errors import UserError
from contextlora.gear.execution.executor import StageExecutor
from contextlora.gear.execution.process_groups import ProcessGroups
from contextlora.gear.planning.roles import StageRoles, TaskRoles

NUM_ITEMS, BATCH, STEPS = 12, 4, 7  # a round takes three steps: the later ones have all answers
INPUTS = torch.randn(NUM_ITEMS, 5, generator=torch.Generator().manual_seed(1))
BATCHES = [[(BATCH * step + row) * 5 % NUM_ITEMS for row in range(BATCH)] for step in range(STEPS)]
ROLES = {
    "forward only": TaskRoles((0, 4, 4), (0, 4, 4), (1, 1, 1, 1)),
    "process 0 forward only, every other batch reassigned": TaskRoles(
        (0, 0, 4), (0, 0, 4), (0, 0, 0, 0), own_owners=(1, 1, 1, 1), reassigned_share=0.5
    ),
    "joins later": TaskRoles((0, 4, 4), (0, 2, 4), (0, 1, 1, 1)),
    "data parallel": TaskRoles((0, 1, 4), (0, 1, 4), (0, 1, 1, 1)),
    "idle process": TaskRoles((0, 4, 4), (0, 4, 4), (0, 0, 0, 0)),
}
pytestmark = pytest.mark.processes


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def chain(weights, numbers):
    """Two answers of an item by the weights of the stage's start: the second depends on the first."""
    x = INPUTS[list(numbers)]
    first = (x @ weights[:, :5].T).argmax(-1)
    return torch.stack([first, (x @ weights[:, :5].T + first[:, None]).argmin(-1)], 1)


def loss_of(model, numbers, answers):
    target = torch.tensor([number % 3 for number in numbers])
    return nn.functional.cross_entropy(model(torch.cat([INPUTS[list(numbers)], answers.float()], 1)), target)


def reference():
    model, optimizer = make()
    weights = model[0].weight.detach().clone()
    for numbers in BATCHES:
        optimizer.zero_grad()
        loss_of(model, numbers, chain(weights, numbers)).backward()
        optimizer.step()
    return values(model, optimizer)


def values(model, optimizer):
    """Weights, and AdamW's moments: its steps hardly change with a gradient that is wrong by a factor."""
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().numpy() for tensor in (*model.parameters(), *moments)]


def train_in_turn(cases):
    dist.init_process_group("gloo")
    return [train(*case) for case in cases]


def train(roles, keeps, known_steps=0):
    """One process's loop; returns the weights and moments, and the items that it answered."""
    model, optimizer = make()
    weights, answered = model[0].weight.detach().clone(), []

    def answer(task, numbers):
        answered.extend(numbers)
        return chain(weights, numbers)

    def get():
        return {"w": [p.detach() for p in model.parameters()], "o": optimizer.state_dict()}

    def put(state):
        with torch.no_grad():
            for p, value in zip(model.parameters(), state["w"], strict=True):
                p.copy_(value)
        optimizer.load_state_dict(state["o"])

    known = {("v", n): chain(weights, [n])[0] for numbers in BATCHES[:known_steps] for n in numbers}
    stage = StageRoles({"v": roles}, keeps, "")
    executor = StageExecutor(stage, ProcessGroups(), {"v": NUM_ITEMS}, {"v": 2}, answer, get, put, known)
    for numbers in BATCHES:
        shard = executor.shard("v", numbers)
        optimizer.zero_grad()
        if shard is not None:

            def mean_loss(part, *_, numbers=numbers):
                rows = slice(part.rows.start, part.rows.stop)
                return loss_of(model, numbers[rows], part.answers[rows])

            executor.backward(shard, mean_loss)
            executor.reduce(model.parameters())
            optimizer.step()
    executor.share_state()
    executor.collect()
    return values(model, optimizer), answered


def test_every_process_ends_with_the_weights_of_one_process(run_processes):
    expected = reference()
    for by_name in run_processes(2, train_in_turn, [(roles, True) for roles in ROLES.values()]):
        for name, (found, _) in zip(ROLES, by_name, strict=True):
            for ours, theirs in zip(found, expected, strict=True):
                # Sums over rows in another order.
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


def test_each_chain_runs_where_the_plan_says_once_or_every_time_and_no_known_one(run_processes):
    roles = ROLES["joins later"]
    found = run_processes(2, train_in_turn, [(roles, True), (roles, False), (ROLES["forward only"], True, 2)])
    once, every_time, resumed = ([answered for _, answered in case] for case in zip(*found, strict=True))
    for answered, batches in ((once, BATCHES[:3]), (every_time, BATCHES)):
        assert answered[0] == [numbers[0] for numbers in batches]
        assert answered[1] == [number for numbers in batches for number in numbers[1:]]
    assert resumed == [[], BATCHES[2]]


def run_ahead():
    """Process 1 answers as fast as it may, process 0 takes its time: when each batch was answered, or taken."""
    dist.init_process_group("gloo")
    made, taken = [], []

    def answer(task, numbers):
        made.append(time.monotonic())
        return torch.zeros(len(numbers), 2, dtype=torch.long)

    stage = StageRoles({"v": ROLES["forward only"]}, False, "")
    executor = StageExecutor(stage, ProcessGroups(), {"v": NUM_ITEMS}, {"v": 2}, answer, dict, print, queue_batches=2)
    for numbers in BATCHES:
        if executor.shard("v", numbers) is not None:
            taken.append(time.monotonic())
            time.sleep(0.1)
    executor.collect()
    return made or taken


def test_forward_only_processes_run_ahead_but_not_further_than_the_queue(run_processes):
    taken, made = run_processes(2, run_ahead)
    assert made[1] < taken[1], "the second batch is answered while the first trains"
    # Batch 2 waits until batch 0 was taken, and so on.
    assert all(made[step] > taken[step - 2] - 0.05 for step in range(3, STEPS))


def uneven():
    """Two tasks in turn with 1 and 2 answers, and batches of 4 and 3: process 1 answers, process 0 trains."""
    dist.init_process_group("gloo")
    widths, role, got = {"u": 1, "v": 2}, TaskRoles((0, 4, 4), (0, 4, 4), (1, 1, 1, 0)), []

    def answer(task, numbers):
        return torch.tensor([[10 * number + place for place in range(widths[task])] for number in numbers])

    stage = StageRoles({"u": role, "v": role}, False, "")
    executor = StageExecutor(stage, ProcessGroups(), {"u": 8, "v": 8}, widths, answer, dict, print)
    for task, numbers in (("u", [0, 1, 2, 3]), ("v", [4, 5, 6]), ("u", [7, 6, 5]), ("v", [3, 2, 1, 0])):
        executor.shard(task, numbers)
        got.append(executor.answers(task, numbers).tolist())
    try:
        executor.shard("v", [0] * 5)
    except UserError as error:
        got.append(str(error))
    executor.collect()
    dist.barrier()
    return got


def test_tasks_and_batches_may_differ_in_size_but_not_exceed_the_plan(run_processes):
    expected = [[[0], [10], [20], [30]], [[40, 41], [50, 51], [60, 61]], [[70], [60], [50]]]
    expected += [[[30, 31], [20, 21], [10, 11], [0, 1]], "v: a batch must have at most 4 items, got 5"]
    assert run_processes(2, uneven) == [expected] * 2


def test_forward_only_processes_run_ahead_as_far_as_the_queue_says(run_processes):
    _, made = run_processes(2, lambda: [count_ahead(queue_batches) for queue_batches in (1, 2, 3)])
    assert made == [1, 2, 3]


def count_ahead(queue_batches):
    """How many batches process 1 answers while process 0 takes none."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    made = []

    def answer(task, numbers):
        made.append(numbers)
        return torch.zeros(len(numbers), 2, dtype=torch.long)

    stage = StageRoles({"v": ROLES["forward only"]}, False, "")
    executor = StageExecutor(
        stage, ProcessGroups(), {"v": NUM_ITEMS}, {"v": 2}, answer, dict, print, None, queue_batches
    )
    early = []
    threading.Timer(0.6, lambda: early.append(len(made))).start()
    if dist.get_rank() == 0:
        time.sleep(1.0)
    for numbers in BATCHES:
        executor.shard("v", numbers)
    executor.collect()
    dist.barrier()
    return early[0]


def reduce_in_turn():
    """Stages trained by processes 0 and 1, then 0 and 2, then all: process 0 has made one group more than process 2."""
    dist.init_process_group("gloo")
    groups, weight, sums = ProcessGroups(), nn.Parameter(torch.zeros(1)), []
    for edges in ((0, 2, 4, 4), (0, 2, 2, 4), (0, 1, 2, 4)):
        stage = StageRoles({"v": TaskRoles(edges, edges, (0,) * 4)}, False, "")
        executor = StageExecutor(stage, groups, {"v": 4}, {"v": 0}, print, dict, print)
        shard = executor.shard("v", range(4))
        if shard is not None:
            weight.grad = torch.ones(1)
            executor.reduce([weight])
            sums.append(weight.grad.item())
        executor.collect()
        dist.barrier()
    return sums


def test_stages_may_train_on_different_groups_of_processes(run_processes):
    assert run_processes(3, reduce_in_turn) == [[2.0, 2.0, 3.0], [2.0, 3.0], [2.0, 3.0]]
