"""What a step costs a group of devices. Seconds, bytes; the letters of the design:

    f_F, f_T   forward of an item of the chain, of the trained task     t_T   forward + backward of an item
    n          forward-only passes of an item's chain                   q     passes a step moved from D_f to D_t
    B          items of a step                                          k     items of one call (micro-batch)

A step of ContextGear takes C = max(C_T, C_F) once the pipeline is filled:

    C_F = (n B - q) f_F + link            C_T = B t_T + q f_F + link

in the mean over the steps, as the chains of whole batches are moved: of a share x of them, q = x n B. A group's devices
share the items (data-parallel, as many items each as balance their speeds, link = ring all-reduce of the LoRA
gradients) or the layers (pipeline). No split can beat max((n f + t) / (S_F + S_T), t / S_T).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from contextlora.gear.planning.device_groups import DeviceGroup, Misfit, Share, micro_batch_sizes, share_items
from contextlora.gear.planning.devices import Fleet
from contextlora.gear.planning.pipeline import StageTimes, best_cuts, chain_s, pipeline_s
from contextlora.gear.planning.workload import TaskWork, Workload


class StageCost:
    """Costs of one stage's tasks on the devices of a fleet; remembers what it has computed."""

    def __init__(self, fleet: Fleet, workload: Workload) -> None:
        self.fleet, self.workload = fleet, workload
        self.devices = {device.name: device for device in fleet.devices}
        self.sizes = micro_batch_sizes(workload.batch_size)
        self.forward = lru_cache(maxsize=None)(self._forward)  # on the object: a decorator's cache would outlive it
        self.train = lru_cache(maxsize=None)(self._train)
        self.reassignable = lru_cache(maxsize=None)(self._reassignable)
        self._figures = lru_cache(maxsize=None)(self._group_figures)
        self._rates = lru_cache(maxsize=None)(self._group_rates)
        self._fitting = lru_cache(maxsize=None)(self._fitting_sizes)
        self._known_sizes: dict[tuple, int | None] = {}
        self._flop_s = {  # of a forward, of forward and backward
            device.name: (device.forward_s(1.0), device.train_s(1.0, workload.train_ratio)) for device in fleet.devices
        }

    # ---- one device

    def pass_s(self, device: str, task: TaskWork) -> float:
        """f_F: one forward-only pass of one item."""
        return self._flop_s[device][0] * task.prerequisite_flops

    def item_s(self, device: str, task: TaskWork) -> float:
        """t_T: forward and backward of one item."""
        return self._flop_s[device][1] * task.forward_flops

    def call_s(self, device: str, task: TaskWork, kind: str, items: float) -> float:
        """One call of kind F, B, P or R (see `gear.simulation.schedule`) on a device.

        Args:
            device: its name.
            task: whose items.
            kind: of the call.
            items: of the micro-batch, times the share of the layers that the device holds.
        """
        if kind in "PR":
            item_s = self.pass_s(device, task)
        else:
            forward_s = self._flop_s[device][0] * task.forward_flops
            item_s = forward_s if kind == "F" else self.item_s(device, task) - forward_s
        return items * item_s + self.devices[device].overhead_s

    def stage_bytes(self, layers: range, task: TaskWork, size: int, alive: int) -> float:
        """Memory of a device that holds these layers.

        Args:
            layers: all of them in a data-parallel group.
            task, size: micro-batches of `size` items of this task.
            alive: micro-batches whose activations wait for their backward; 0 on a device that only runs forward.
        """
        work = self.workload
        held = range(work.num_layers) if work.whole_model else layers
        share = len(held) / work.num_layers
        resident = sum(work.layer_bytes[layer] for layer in held) + share * work.adapter_bytes
        if not alive:
            return resident + size * task.forward_activation_bytes
        kept = alive * len(layers) * task.train_activation_bytes
        passing = task.forward_activation_bytes if task.num_prerequisites else 0.0  # chains run before the batch
        return resident + share * work.optimizer_bytes + size * max(kept, passing)

    def memory_bytes(self, group: DeviceGroup, position: int, task: TaskWork, size: int, trains: bool) -> float:
        """Memory of one device of a group with micro-batches of `size` items."""
        num_layers, num_micro = self.workload.num_layers, math.ceil(self.workload.batch_size / size)
        if group.layout == "data":
            return self.stage_bytes(range(num_layers), task, size, alive=int(trains))
        # 1F1B: stage s holds p - s micro-batches, those that its forwards are ahead of its backwards.
        in_flight = num_micro if group.layout == "gpipe" else min(len(group.devices) - position, num_micro)
        layers = group.layers(num_layers)[position]
        return self.stage_bytes(layers, task, size, alive=in_flight if trains else 0)

    def _misfit(self, group: DeviceGroup, position: int, task: TaskWork, size: int, trains: bool) -> Misfit | None:
        device = self.devices[group.devices[position]]
        needed = self.memory_bytes(group, position, task, size, trains)
        return Misfit(device.name, needed, device.memory_bytes) if needed > device.memory_bytes else None

    # ---- groups

    def _forward(self, group: DeviceGroup, task: TaskWork, trains: bool = False) -> Share | Misfit:
        """A group running the chains of a batch, without the link.

        Args:
            group, task: who, and whose.
            trains: whether the group keeps room for training too.
        """
        if group.layout != "data":
            return self._pipeline(group, task, chains=True, trains=False)
        figures = self._figures(group, task, trains)
        if isinstance(figures, Misfit):
            return figures
        n, (_, pass_s, overhead_s, sizes) = task.num_prerequisites, figures
        batch_size = self.workload.batch_size
        return share_items(
            batch_size, sizes, lambda i, items: n * (items * pass_s[i] + -(-items // sizes[i]) * overhead_s[i])
        )

    def _train(self, group: DeviceGroup, task: TaskWork, chains: bool) -> Share | Misfit:
        """D_t training a batch, perhaps after its own items' chains; all-reduce included."""
        if group.layout != "data":
            return self._pipeline(group, task, chains, trains=True)
        figures = self._figures(group, task, True)
        if isinstance(figures, Misfit):
            return figures
        item_s, pass_s, overhead_s, sizes = figures
        n = task.num_prerequisites if chains else 0

        def finish_s(i: int, items: int) -> float:
            # Calls of a micro-batch: forward, backward and n passes, each with its overhead.
            return items * (item_s[i] + n * pass_s[i]) + (2 + n) * -(-items // sizes[i]) * overhead_s[i]

        share = share_items(self.workload.batch_size, sizes, finish_s)
        return Share(share.seconds + self.all_reduce_s(group.devices, task), share.items, share.micro_batches)

    def _reassignable(self, group: DeviceGroup, task: TaskWork) -> list[tuple[Share, Share]] | Misfit:
        """D_t with each k that it may choose: a batch trained without its chains, and a batch's chains alone."""
        if group.layout == "data":
            train = self.train(group, task, False)
            if isinstance(train, Misfit):
                return train
            own = self.forward(group, task, True)
            return [(train, replace(own, seconds=own.seconds + self.answers_s(group, group, task)))]
        fitting, count = self._fitting_chains(group, task, True), len(group.devices)
        if isinstance(fitting, Misfit):
            return fitting
        items = (self.workload.batch_size,) * count
        return [
            (Share(batch_s, items, (k,) * count), Share(own_s, items, (k,) * count)) for k, batch_s, own_s in fitting
        ]

    def _group_figures(
        self, group: DeviceGroup, task: TaskWork, trains: bool
    ) -> tuple[list[float], list[float], list[float], tuple[int, ...]] | Misfit:
        """Of each device of a data-parallel group: t_T, f_F, overhead of a call, and the largest k that fits."""
        names, sizes = group.devices, []
        for position, name in enumerate(names):
            size = self._largest_size(self.devices[name].memory_bytes, task, trains)
            if size is None:
                return self._misfit(group, position, task, 1, trains)
            sizes.append(size)
        item_s, pass_s = [self.item_s(name, task) for name in names], [self.pass_s(name, task) for name in names]
        return item_s, pass_s, [self.devices[name].overhead_s for name in names], tuple(sizes)

    def _largest_size(self, memory_bytes: float, task: TaskWork, trains: bool) -> int | None:
        """The largest k with which a whole model fits into so much memory: fewer calls cost less."""
        # All that memory needs to know of a task: tasks that differ in their chains share the answer.
        key = (memory_bytes, trains, task.train_activation_bytes, task.forward_activation_bytes)
        key += (task.num_prerequisites > 0,)
        if key not in self._known_sizes:
            layers, alive = range(self.workload.num_layers), int(trains)
            fitting = (size for size in self.sizes if self.stage_bytes(layers, task, size, alive) <= memory_bytes)
            self._known_sizes[key] = next(fitting, None)
        return self._known_sizes[key]

    def _pipeline(self, group: DeviceGroup, task: TaskWork, chains: bool, trains: bool) -> Share | Misfit:
        """A layer pipeline with its best k: the chains, pass after pass, then (if it trains) the batch."""
        fitting = self._fitting_chains(group, task, trains)
        if isinstance(fitting, Misfit):
            return fitting
        weighed = [(batch_s + (chains_s if chains else 0.0), k) for k, batch_s, chains_s in fitting]
        seconds, size = min(weighed, key=lambda one: one[0])
        count = len(group.devices)
        return Share(seconds, (self.workload.batch_size,) * count, (size,) * count)

    def _fitting_chains(
        self, group: DeviceGroup, task: TaskWork, trains: bool
    ) -> list[tuple[int, float, float]] | Misfit:
        """Every k with which a pipeline fits, and its seconds to train a batch and to run a batch's chains."""
        n, batch_size = task.num_prerequisites, self.workload.batch_size
        # Tasks that differ in the length of their chains only share what a pass and a batch take.
        one_pass = replace(task, task="", num_prerequisites=min(n, 1), answer_bytes=task.answer_bytes / max(n, 1))
        fitting = self._fitting(group, replace(one_pass, steps=0, epoch_items=0), trains)
        if isinstance(fitting, Misfit):
            return fitting
        return [(k, batch_s, chain_s(times, n, math.ceil(batch_size / k))) for k, times, batch_s in fitting]

    def _fitting_sizes(
        self, group: DeviceGroup, task: TaskWork, trains: bool
    ) -> list[tuple[int, list[StageTimes], float]] | Misfit:
        """Every k with which a pipeline fits, its stages' seconds, and those of training a batch."""
        found, misfit, count = [], None, len(group.devices)
        for size in self.sizes:
            num_micro = math.ceil(self.workload.batch_size / size)
            if trains and group.layout == "1f1b" and size > 1 and num_micro < count:
                continue  # 1F1B alternates with at least as many micro-batches as stages; with fewer it is GPipe
            misfits = (self._misfit(group, position, task, size, trains) for position in range(count))
            misfit = next(filter(None, misfits), None)
            if misfit is None:
                times = self.stage_times(group, task, size)
                found.append((size, times, pipeline_s(times, num_micro, group.layout) if trains else 0.0))
        return found or misfit

    # ---- layer pipelines

    def stage_times(self, group: DeviceGroup, task: TaskWork, size: int) -> list[StageTimes]:
        """Seconds of one micro-batch in each stage of a pipeline."""
        stages = enumerate(group.layers(self.workload.num_layers))
        return [self._stage_times(group.devices, position, layers, task, size) for position, layers in stages]

    def cuts(self, devices: tuple[str, ...], layout: str, task: TaskWork, exact: bool = True) -> list[tuple[int, ...]]:
        """Cut points worth weighing for a row of devices: over all micro-batch sizes, or over every other one."""
        found: dict[tuple[int, ...], None] = {}
        for size in self.sizes if exact else self.sizes[::2]:
            num_micro = math.ceil(self.workload.batch_size / size)

            def times_of(stage: int, layers: range, size: int = size, m: int = num_micro) -> StageTimes | None:
                alive = m if layout == "gpipe" else min(len(devices) - stage, m)
                if self.stage_bytes(layers, task, size, alive) > self.devices[devices[stage]].memory_bytes:
                    return None
                return self._stage_times(devices, stage, layers, task, size)

            found |= dict.fromkeys(best_cuts(times_of, len(devices), self.workload.num_layers, num_micro, exact))
        return list(found)

    def _stage_times(
        self, devices: Sequence[str], position: int, layers: range, task: TaskWork, size: int
    ) -> StageTimes:
        device, shares = self.devices[devices[position]], self.workload.layer_flops_shares
        items = size * sum(shares[layer] for layer in layers)
        send_s = send_chain_s = send_back_s = 0.0
        if position + 1 < len(devices):
            link = self.fleet.link(device.name, devices[position + 1])
            send_s = link.seconds(size * task.boundary_bytes)
            send_chain_s = link.seconds(size * task.prerequisite_boundary_bytes)
        elif position:  # the answers, without which the next pass cannot begin
            answers_bytes = size * task.answer_bytes / max(1, task.num_prerequisites)
            send_chain_s = self.fleet.link(device.name, devices[0]).seconds(answers_bytes)
        if position:
            send_back_s = self.fleet.link(devices[position - 1], device.name).seconds(size * task.boundary_bytes)
        return StageTimes(
            forward_s=self.call_s(device.name, task, "F", items) + send_s,
            backward_s=self.call_s(device.name, task, "B", items) + send_back_s,
            chain_s=self.call_s(device.name, task, "P", items) + send_chain_s,
        )

    # ---- links

    def all_reduce_s(self, devices: Sequence[str], task: TaskWork) -> float:
        """Ring all-reduce: 2 (p - 1) messages of 1/p of the gradients over the ring's slowest link."""
        count = len(devices)
        if count < 2:
            return 0.0
        size = task.gradient_bytes / count
        return 2 * (count - 1) * max(self.fleet.link(*pair).seconds(size) for pair in ring(devices))

    def answers_s(self, forward: DeviceGroup, train: DeviceGroup, task: TaskWork) -> float:
        """Sending a batch's answers from those who run the chains to those who train, over the slowest link."""
        if not task.num_prerequisites or (forward == train and len(train.devices) == 1):
            return 0.0
        size = self.workload.batch_size * task.answer_bytes
        if not self.fleet.links:  # all pairs are alike: no need to walk |D_f| |D_t| of them
            return self.fleet.default_link.seconds(size)
        pairs = ((a, b) for a in forward.devices for b in train.devices if a != b)
        return max(self.fleet.link(a, b).seconds(size) for a, b in pairs)

    def lower_bound_s(self, train: Sequence[str], forward: Sequence[str], task: TaskWork) -> float:
        """max((n f + t) / (S_F + S_T), t / S_T): no schedule of these two groups does a step sooner."""
        ratio, rate, train_rate = self._rates(tuple(train), tuple(forward))
        flops = task.num_prerequisites * task.prerequisite_flops + ratio * task.forward_flops
        return self.workload.batch_size * max(flops / rate, task.forward_flops / train_rate)

    def _group_rates(self, train: tuple[str, ...], forward: tuple[str, ...]) -> tuple[float, float, float]:
        """Least t / f of D_t, so that devices with one of their own stay above the bound; S_F + S_T, S_T in FLOP/s."""
        forward_s = [self._flop_s[name][0] for name in (*train, *forward)]
        train_s = [self._flop_s[name][1] for name in train]
        ratio = min(t / f for t, f in zip(train_s, forward_s, strict=False))
        return ratio, sum(1 / f for f in forward_s), sum(1 / t for t in train_s)


def ring(devices: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours in the ring of an all-reduce."""
    return list(zip(devices, (*devices[1:], devices[0]), strict=True))
