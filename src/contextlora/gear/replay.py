"""A planned stage as a schedule, simulated with the costs that the planner used."""

from collections.abc import Callable

from contextlora.gear.builders import build_schedule
from contextlora.gear.candidates import Candidate, TaskPlan, plan_task
from contextlora.gear.cost import Group, StageCost
from contextlora.gear.devices import Fleet
from contextlora.gear.schedule import Action
from contextlora.gear.simulate import Costs, Simulation, simulate
from contextlora.gear.workload import TaskWork, Workload


def replay(
    fleet: Fleet, workload: Workload, candidate: Candidate, task: TaskWork, num_batches: int, queue_batches: int = 2
) -> Simulation:
    """Simulates some batches of one task under a candidate that fits, from an empty pipeline to an empty one."""
    cost = StageCost(fleet, workload)
    plan = plan_task(cost, candidate, task)
    schedule = build_schedule(candidate, plan, workload.batch_size, num_batches, queue_batches)
    items = {"F": schedule.train_items, "B": schedule.train_items, "P": schedule.chain_items, "R": schedule.chain_items}
    place = _places(candidate, workload)

    def num_items(action: Action) -> int:
        return len((items.get(action.kind[-1]) or schedule.chain_items)[action.micro_batch])

    def action_s(rank: int, action: Action) -> float:
        if action.kind == "ALLREDUCE":
            return cost.all_reduce_s(candidate.train.devices, task)
        layers = place(rank)
        share = sum(workload.layer_flops_shares[layer] for layer in layers)
        return cost.call_s(schedule.devices[rank], task, action.kind, num_items(action) * share)

    def action_bytes(rank: int, action: Action) -> float:
        if action.kind == "F":
            return num_items(action) * len(place(rank)) * task.train_activation_bytes
        return num_items(action) * task.forward_activation_bytes if action.kind in ("P", "R") else 0.0

    costs = Costs(
        action_s=action_s,
        send_bytes=lambda action: num_items(action) * _item_bytes(action, task),
        link=lambda a, b: fleet.link(schedule.devices[a], schedule.devices[b]),
        resident_bytes=_resident_bytes(cost, candidate, plan, task),
        action_bytes=action_bytes,
    )
    return simulate(schedule, costs)


def _item_bytes(action: Action, task: TaskWork) -> float:
    """What a send carries for one item; the answers of a pass are its share of the chain's."""
    if action.kind == "SEND_A":
        is_last = action.chain_pass == task.num_prerequisites - 1
        return task.answer_bytes if is_last else task.answer_bytes / task.num_prerequisites
    return task.boundary_bytes if action.kind in ("SEND_F", "SEND_B") else task.prerequisite_boundary_bytes


def _places(candidate: Candidate, workload: Workload) -> Callable[[int], range]:
    """rank -> the layers that it holds."""
    held: list[range] = []
    for group in filter(None, (candidate.train, candidate.forward)):
        held += _held(group, workload.num_layers)
    return held.__getitem__


def _held(group: Group, num_layers: int) -> list[range]:
    return [range(num_layers)] * len(group.devices) if group.layout == "data" else group.layers(num_layers)


def _resident_bytes(cost: StageCost, candidate: Candidate, plan: TaskPlan, task: TaskWork) -> list[float]:
    """Weights, adapters and (on D_t) optimizer: the memory of a micro-batch of no items."""
    num_layers = cost.workload.num_layers
    train = [cost.stage_bytes(layers, task, 0, alive=1) for layers in _held(candidate.train, num_layers)]
    if candidate.forward is None:
        return train
    return train + [cost.stage_bytes(layers, task, 0, alive=0) for layers in _held(candidate.forward, num_layers)]
