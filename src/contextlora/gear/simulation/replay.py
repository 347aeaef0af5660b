"""A planned stage as a schedule, with the costs that the planner used."""

from dataclasses import replace

from contextlora.gear.planning.candidates import Candidate, plan_task
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.device_groups import DeviceGroup
from contextlora.gear.planning.devices import Fleet
from contextlora.gear.planning.workload import TaskWork, Workload
from contextlora.gear.simulation.builders import build_schedule, then
from contextlora.gear.simulation.schedule import QUEUE_BATCHES, Action, Schedule
from contextlora.gear.simulation.simulate import Costs


def schedule_and_costs(
    fleet: Fleet,
    workload: Workload,
    candidate: Candidate,
    task: TaskWork,
    num_batches: int,
    num_later: int = 0,
    queue_batches: int = QUEUE_BATCHES,
) -> tuple[Schedule, Costs]:
    """Some batches of one task under a candidate that fits, from an empty pipeline to an empty one; see `simulate`.

    Args:
        fleet, workload, candidate, task: what was planned.
        num_batches: with the chains.
        num_later: after them, of `candidate.later` with the answers kept.
        queue_batches: how far D_f may run ahead.
    """
    cost, batch_size = StageCost(fleet, workload), workload.batch_size
    schedule = build_schedule(candidate, plan_task(cost, candidate, task), batch_size, num_batches, queue_batches)
    groups = [candidate.train] * len(schedule.train_items)
    if candidate.later is not None and num_later:
        alone, known = Candidate(candidate.strategy, candidate.later), replace(task, num_prerequisites=0)
        later = build_schedule(alone, plan_task(cost, alone, known), batch_size, num_later)
        groups += [candidate.later] * len(later.train_items)
        schedule = then(schedule, later)
    return schedule, _Costs(cost, candidate, task, schedule, groups).as_costs(num_batches)


class _Costs:
    """Seconds and bytes of a schedule's actions; `groups` holds the group that trains each train micro-batch."""

    def __init__(
        self, cost: StageCost, candidate: Candidate, task: TaskWork, schedule: Schedule, groups: list[DeviceGroup]
    ) -> None:
        self.cost, self.candidate, self.task, self.schedule, self.groups = cost, candidate, task, schedule, groups
        kind = "R" if candidate.forward else "P"
        self.own_chains = {a.micro_batch for row in schedule.actions for a in row if a.kind == kind}

    def as_costs(self, num_batches: int) -> Costs:
        """For a simulation whose first `num_batches` batches have chains."""
        names, later = self.schedule.devices, self.candidate.later or self.candidate.train

        def action_s(process: int, action: Action) -> float:
            if action.kind == "ALLREDUCE":
                group = self.candidate.train if action.micro_batch < num_batches else later
                return self.cost.all_reduce_s(group.devices, self.task)
            shares = self.cost.workload.layer_flops_shares
            items = self._items(action) * sum(shares[layer] for layer in self._layers(process, action))
            return self.cost.call_s(names[process], self.task, action.kind, items)

        return Costs(
            action_s=action_s,
            send_bytes=lambda action: self._items(action) * self._item_bytes(action),
            link=lambda a, b: self.cost.fleet.link(names[a], names[b]),
            resident_bytes=[self._resident_bytes(name) for name in names],
            action_bytes=self._action_bytes,
        )

    def _items(self, action: Action) -> int:
        schedule = self.schedule
        items = schedule.chain_items if action.kind[-1] in "PRA" else schedule.train_items
        return len(items[action.micro_batch])

    def _layers(self, process: int, action: Action) -> range:
        """The layers that an action runs."""
        name = self.schedule.devices[process]
        if action.kind == "P" and self.candidate.forward is not None:
            return self._held(self.candidate.forward, name)
        # R, and P without D_f, run on the D_t of the first epoch.
        train = self.groups[action.micro_batch] if action.kind in "FB" else self.candidate.train
        return self._held(train, name)

    def _held(self, group: DeviceGroup, name: str) -> range:
        num_layers = self.cost.workload.num_layers
        return range(num_layers) if group.layout == "data" else group.layers(num_layers)[group.devices.index(name)]

    def _action_bytes(self, process: int, action: Action) -> float:
        if action.kind == "F":
            return self._items(action) * len(self._layers(process, action)) * self.task.train_activation_bytes
        return self._items(action) * self.task.forward_activation_bytes if action.kind in ("P", "R") else 0.0

    def _item_bytes(self, action: Action) -> float:
        """What a send carries for one item: one pass's answers, or at the end of D_f those of the whole chain."""
        task = self.task
        if action.kind == "SEND_A":
            to_stages = action.micro_batch in self.own_chains and self.candidate.train.layout != "data"
            whole = action.chain_pass == task.num_prerequisites - 1 and not to_stages
            return task.answer_bytes if whole else task.answer_bytes / task.num_prerequisites
        return task.boundary_bytes if action.kind in ("SEND_F", "SEND_B") else task.prerequisite_boundary_bytes

    def _resident_bytes(self, name: str) -> float:
        """Weights, adapters and (where it trains) optimizer: the memory of a micro-batch of no items."""
        train, forward = self.candidate.train, self.candidate.forward
        # `later` counts only where some of its batches are simulated.
        trainers = [train] + ([self.candidate.later] if self.candidate.later in self.groups else [])
        held = [(group, 1) for group in trainers if name in group.devices]
        held += [(forward, 0)] if forward is not None and name in forward.devices else []
        return max(self.cost.stage_bytes(self._held(group, name), self.task, 0, alive) for group, alive in held)
