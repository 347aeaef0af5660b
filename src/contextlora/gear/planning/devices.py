"""Devices and the links between them, as a catalogue describes them.

    devices:
      board-1: {flops_per_s: 1.0e12, overhead_s: 0.02, memory_bytes: 6.0e9}
      board-2: {measured: {workload: bundled, forward_flops: 2.9e8, forward_s: 0.004, train_s: 0.009},
                overhead_s: 0.02, memory_bytes: 6.0e9}
    link: {bandwidth_bits_per_s: 2.0e7, latency_s: 0.005}
    links:
      board-1 - board-2: {bandwidth_bits_per_s: 1.0e9, latency_s: 0.0005}

`link` holds for every pair that `links` does not name. Links are full duplex and the same in both directions.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from contextlora.errors import ConfigError, known, tail
from contextlora.limits import shown

_LEAST, _MOST = 1e-18, 1e21


@dataclass(frozen=True)
class Measured:
    """Seconds that a device took for one item of a named workload.

    Attributes:
        workload: what was run, for people.
        forward_flops: FLOPs of one forward of one item of it.
        forward_s: seconds of one forward of one item, without the overhead of a call.
        train_s: seconds of forward and backward of one item, likewise.
    """

    workload: str
    forward_flops: float
    forward_s: float
    train_s: float


@dataclass(frozen=True)
class Device:
    """One device; how fast it is stands in `flops_per_s` or in `measured`.

    Attributes:
        name: as in the catalogue.
        memory_bytes: what training may use of its memory.
        overhead_s: seconds that every call (a forward or a backward of a micro-batch) costs beyond its FLOPs.
        flops_per_s: FLOPs per second that it sustains, not the peak of its data sheet.
        measured: what the profiler found.
    """

    name: str
    memory_bytes: float
    overhead_s: float = 0.0
    flops_per_s: float | None = None
    measured: Measured | None = None

    def forward_s(self, flops: float) -> float:
        """Seconds of a forward of so many FLOPs, without the overhead of a call."""
        if self.measured:
            return flops * self.measured.forward_s / self.measured.forward_flops
        return flops / self.flops_per_s

    def train_s(self, forward_flops: float, train_ratio: float) -> float:
        """Seconds of forward and backward, without overhead.

        Args:
            forward_flops: FLOPs of the forward alone.
            train_ratio: forward and backward over forward, where the device has no measured one.
        """
        if self.measured:
            train_ratio = self.measured.train_s / self.measured.forward_s
        return self.forward_s(forward_flops) * train_ratio


@dataclass(frozen=True)
class Link:
    """A connection: messages follow each other, each takes latency + size / bandwidth."""

    bandwidth_bits_per_s: float
    latency_s: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """Seconds of one message."""
        return self.latency_s + 8 * num_bytes / self.bandwidth_bits_per_s


@dataclass(frozen=True)
class Fleet:
    """All devices of a catalogue.

    Attributes:
        name: of the catalogue.
        devices: in its order.
        default_link: between two devices that `links` does not name.
        links: pairs of names, in alphabetical order, with a link of their own.
    """

    name: str
    devices: tuple[Device, ...]
    default_link: Link
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def link(self, first: str, second: str) -> Link:
        """The link between two devices, given by name."""
        if not self.links:
            return self.default_link
        return self.links.get((min(first, second), max(first, second)), self.default_link)

    @classmethod
    def from_tree(cls, tree: Any, name: str, where: str) -> "Fleet":
        """Builds a fleet from a catalogue's tree.

        Args:
            tree: what the YAML file holds, see the module's head.
            name: how plans call the fleet.
            where: the file, for messages.

        Raises:
            ConfigError: names the file, the key, the value and what is wanted.
        """
        where = tail(where)
        top = _section(tree, where, "", ("devices", "link"), ("links",))
        entries = top["devices"]
        if not isinstance(entries, dict) or not entries:
            raise ConfigError(f"{where}: devices must map at least one name to its device, got {shown(entries)}")
        devices = tuple(_device(str(key), entry, where) for key, entry in entries.items())
        names = {device.name for device in devices}
        pairs = _section(top.get("links", {}), where, "links", (), None)
        links = {_pair(key, names, where): _link(entry, where, f"links.{key}") for key, entry in pairs.items()}
        return cls(name, devices, _link(top["link"], where, "link"), links)

    def to_tree(self) -> dict[str, Any]:
        """The inverse of `from_tree`, without the name."""
        devices = {}
        for device in self.devices:
            # `from_tree` counts a key with null as given, and takes one way of saying the speed only.
            entry = {key: value for key, value in asdict(device).items() if value is not None}
            devices[entry.pop("name")] = entry
        links = {f"{first} - {second}": asdict(link) for (first, second), link in self.links.items()}
        return {"devices": devices, "link": asdict(self.default_link)} | ({"links": links} if links else {})


def _device(name: str, entry: Any, where: str) -> Device:
    key = f"devices.{name}"
    entry = _section(entry, where, key, ("memory_bytes",), ("overhead_s", "flops_per_s", "measured"))
    if ("flops_per_s" in entry) == ("measured" in entry):
        found = "both" if "measured" in entry else "none"
        raise ConfigError(f"{where}: {key} must say how fast it is by flops_per_s or by measured, got {found}")
    measured, flops_per_s = None, None
    if "measured" in entry:
        numbers = ("forward_flops", "forward_s", "train_s")
        rows = _section(entry["measured"], where, f"{key}.measured", ("workload", *numbers), ())
        seconds = {part: _number(rows[part], where, f"{key}.measured.{part}") for part in numbers}
        measured = Measured(str(rows["workload"]), **seconds)
    else:
        flops_per_s = _number(entry["flops_per_s"], where, f"{key}.flops_per_s")
    memory = _number(entry["memory_bytes"], where, f"{key}.memory_bytes")
    overhead = _number(entry.get("overhead_s", 0.0), where, f"{key}.overhead_s", zero=True)
    return Device(name, memory, overhead, flops_per_s, measured)


def _link(entry: Any, where: str, key: str) -> Link:
    entry = _section(entry, where, key, ("bandwidth_bits_per_s",), ("latency_s",))
    bandwidth = _number(entry["bandwidth_bits_per_s"], where, f"{key}.bandwidth_bits_per_s")
    return Link(bandwidth, _number(entry.get("latency_s", 0.0), where, f"{key}.latency_s", zero=True))


def _pair(key: Any, names: Collection[str], where: str) -> tuple[str, str]:
    # With blanks, as names may hold dashes themselves (board-1).
    first, dash, second = str(key).partition(" - ")
    if not dash or first == second:
        raise ConfigError(f"{where}: a key of links must be `device - device`, two different ones, got {shown(key)}")
    for name in (first, second):
        if name not in names:
            raise ConfigError(f"{where}: links.{key} names no device: {shown(name)}{known(name, sorted(names))}")
    return min(first, second), max(first, second)


def _section(
    entry: Any, where: str, key: str, required: tuple[str, ...], optional: tuple[str, ...] | None
) -> dict[Any, Any]:
    """The entry as a mapping with these keys; `optional` None allows any."""
    what = f"{key} " if key else "it "
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {what}must be a mapping, got {shown(entry)}")
    for name in required:
        if name not in entry:
            raise ConfigError(f"{where}: {what}lacks {name}; add it")
    allowed = (*required, *(optional or ()))
    for name in entry:
        if optional is not None and name not in allowed:
            raise ConfigError(f"{where}: {what}has an unknown key {shown(name)}{known(name, sorted(allowed))}")
    return entry


def _number(value: Any, where: str, key: str, zero: bool = False) -> float:
    # Compared, not converted: an int may be larger than any float. True is an int in Python.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # No device is out of this range, and times that are made of such numbers can be added and drawn.
    if not is_number or not (_LEAST <= value <= _MOST or (value == 0 and zero)):
        rule = f"{'0 or ' if zero else ''}a number from {_LEAST:g} to {_MOST:g}"
        raise ConfigError(f"{where}: {key} must be {rule}, got {shown(value)}")
    return float(value)
