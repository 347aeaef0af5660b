"""Layer pipelines without Lightning, on a toy model: the reference is one process with the whole model.

float32; tolerances are for sums in another order.
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from contextlora.gear.execution.executor import ProcessGroups, StageExecutor
from contextlora.gear.planning.roles import Pipeline, StageRoles, TaskRoles

pytestmark = pytest.mark.processes
NUM_ITEMS, BATCH, STEPS, WIDTH, MAX_NORM = 12, 4, 7, 5, 0.5
LAYERS = 4
INPUTS = torch.randn(NUM_ITEMS, 40, WIDTH, generator=torch.Generator().manual_seed(1))
BATCHES = [[(BATCH * step + row) * 5 % NUM_ITEMS for row in range(BATCH)] for step in range(STEPS)]
LENGTHS = [7, 18, 7, 16, 33, 18, 7]  # tokens of each batch: several wires


def make():
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)])
    return model, torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def through(model, layers, hidden):
    for layer in model[layers]:
        hidden = hidden + layer(hidden)
    return hidden


def embed(numbers, answers, length):
    """Inputs of the first layer: the answers shift them."""
    return INPUTS[list(numbers), :length] + answers.float().sum(1)[:, None, None]


def loss_of(hidden, numbers):
    return nn.functional.cross_entropy(hidden.mean(1), torch.tensor([number % WIDTH for number in numbers]))


def chain(model, numbers):
    """Two answers by the weights of the stage's start: the second depends on the first."""
    answers = torch.zeros(len(numbers), 0, dtype=torch.long)
    for _ in range(2):
        found = through(model, slice(None), embed(numbers, answers, 9)).mean(1).argmax(-1)
        answers = torch.cat([answers, found[:, None]], 1)
    return answers


def reference(num_answers):
    model, optimizer = make()
    start = make()[0]
    for numbers, length in zip(BATCHES, LENGTHS, strict=True):
        answers = chain(start, numbers)[:, :num_answers]
        optimizer.zero_grad()
        loss_of(through(model, slice(None), embed(numbers, answers, length)), numbers).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
    return values(model, optimizer)


def values(model, optimizer):
    """Weights, and AdamW's moments: its steps hardly change with a gradient that is wrong by a factor."""
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().numpy() for tensor in (*model.parameters(), *moments)]


def train_in_turn(cases):
    dist.init_process_group("gloo")
    return [train(roles, num_answers) for num_answers, roles in cases]


def train(roles, num_answers):
    """One process's loop; returns the weights, the largest number of items it computed at once, and its layers."""
    model, optimizer = make()
    start, calls, seen = make()[0], [], set()

    def own(layers=slice(None)):
        chosen = {id(p) for p in model[layers].parameters()}
        return [number for number, p in enumerate(model.parameters()) if id(p) in chosen]

    def get(layers=slice(None)):
        weights, state = list(model.parameters()), optimizer.state_dict()["state"]
        return {n: (weights[n].detach(), state.get(n, {})) for n in own(layers)}

    def put(part):
        state, weights = optimizer.state_dict(), list(model.parameters())
        with torch.no_grad():
            for number, (value, moments) in part.items():
                weights[number].copy_(value)
                state["state"] |= {number: moments} if moments else {}
        optimizer.load_state_dict(state)

    def hidden_item(length):
        return torch.empty(length, WIDTH, device="meta")

    def one_pass(numbers, answers, column):
        def run(rows, layers, hidden):
            calls.append(len(rows))
            first = slice(rows.start, rows.stop)
            hidden = embed(numbers[first], answers[first], 9) if hidden is None else hidden
            hidden = through(start, layers or slice(None), hidden)
            return hidden if layers is not None and layers.stop else hidden.mean(1).argmax(-1)

        return executor.forward(len(numbers), run, hidden_item(9), torch.empty((), dtype=torch.long))

    def answer(task, numbers):
        answers = torch.zeros(len(numbers), 0, dtype=torch.long)
        for column in range(num_answers):
            answers = torch.cat([answers, one_pass(numbers, answers, column)[:, None]], 1)
        return answers

    executor = StageExecutor(roles, ProcessGroups(), {"v": NUM_ITEMS}, {"v": num_answers}, answer, get, put)
    for numbers, length in zip(BATCHES, LENGTHS, strict=True):

        def run(part, layers, hidden, numbers=numbers, length=length):
            calls.append(len(part.rows))
            seen.update(range(LAYERS)[layers or slice(None)])
            rows = slice(part.rows.start, part.rows.stop)
            hidden = embed(numbers[rows], part.answers[rows], length) if hidden is None else hidden
            hidden = through(model, layers or slice(None), hidden)
            return hidden if layers is not None and layers.stop else loss_of(hidden, numbers[rows])

        shard = executor.shard("v", numbers)
        optimizer.zero_grad()
        if shard is not None:
            executor.backward(shard, run, hidden_item(length))
            executor.reduce(model.parameters())
            executor.clip(model.parameters(), MAX_NORM)
            optimizer.step()
    executor.share_state()
    executor.collect()
    return values(model, optimizer), max(calls, default=0), sorted(seen)


def one_group(size, *processes, layout="1f1b", cuts=(2,)):
    """A pipeline that trains and runs its own chains."""
    last = processes[-1]
    edges = tuple(BATCH * (process > last) for process in range(len(processes) + 1))
    pipeline = Pipeline(processes, layout, cuts)
    tasks = {"v": TaskRoles(edges, edges, (last,) * BATCH, (size,) * len(processes), (size,) * len(processes))}
    return StageRoles(tasks, True, "", pipeline, None, pipeline)


def tasks(*shares):
    return {"v": TaskRoles(*shares)}


# Processes 2, 0 train and run the chain of row 0; processes 1, 3 run the others. Process 0 stands for the first pair, 3
# for the second.
TWO_GROUPS = StageRoles(
    tasks((0, 4, 4, 4, 4), (0, 4, 4, 4, 4), (0, 3, 3, 3), (1, 2, 1, 2), (2, 0, 2, 0)),
    True,
    "",
    train=Pipeline((2, 0), "gpipe", (1,)),
    forward=Pipeline((1, 3), "1f1b", (3,)),
    later=Pipeline((2, 0), "gpipe", (1,)),
)
# Processes 0, 1 train while process 2 runs the chains; then all three share the rows.
PIPELINE_THEN_ROWS = StageRoles(
    tasks((0, 0, 4, 4), (0, 1, 2, 4), (2, 2, 2, 2), (2, 2, 3), (1, 1, 1)),
    True,
    "",
    train=Pipeline((0, 1), "1f1b", (2,)),
)
# Processes 0, 2 run the chains of process 3, then share its rows; process 1 takes part in nothing but must know of all
# groups.
AHEAD_THEN_ROWS = StageRoles(
    tasks((0, 0, 0, 0, 4), (0, 2, 2, 3, 4), (3, 2, 2, 2), (2, 0, 2, 4), (4, 0, 4, 4)),
    True,
    "",
    forward=Pipeline((0, 2), "gpipe", (2,)),
)
# Whole items, but no more than two or one at a time.
ROWS = StageRoles(tasks((0, 3, 4), (0, 3, 4), (0, 0, 1, 1), (2, 1), (1, 1)), True, "")


CASES = {  # by the number of processes: answers of an item, roles
    2: [
        (0, one_group(1, 0, 1)),
        (1, one_group(2, 1, 0, layout="gpipe", cuts=(1,))),
        (2, one_group(3, 0, 1)),  # micro-batches of 3 and 1 rows
        (2, ROWS),
    ],
    3: [(2, one_group(1, 2, 0, 1, cuts=(1, 2))), (1, PIPELINE_THEN_ROWS)],
    4: [(2, TWO_GROUPS), (1, AHEAD_THEN_ROWS)],
}


@pytest.mark.parametrize("size", CASES)
def test_a_pipeline_ends_with_the_weights_of_one_process(size, run_processes):
    for process, found in enumerate(run_processes(size, train_in_turn, CASES[size])):
        for (num_answers, roles), (ours, largest, layers) in zip(CASES[size], found, strict=True):
            for value, expected in zip(ours, reference(num_answers), strict=True):
                np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
            shares = roles.tasks["v"]
            assert largest <= max(shares.sizes[process], shares.later_sizes[process])
            assert len(layers) < LAYERS or roles.later is None, "a stage runs its own layers only"
