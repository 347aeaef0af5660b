"""The catalogue: what it says, that it comes back, and that mistakes name file, key, value and rule."""

import copy

import pytest
import yaml

from contextlora.config import CONFIG_DIR, read_devices, write_devices
from contextlora.errors import ConfigError
from contextlora.gear.planning.devices import Device, Fleet, Link, Measured

TREE = {
    "devices": {
        "fast": {"flops_per_s": 2e9, "overhead_s": 0.01, "memory_bytes": 8e9},
        "slow": {
            "memory_bytes": 4e9,
            "measured": {"workload": "w", "forward_flops": 1e6, "forward_s": 0.002, "train_s": 0.005},
        },
        "far": {"flops_per_s": 1e9, "memory_bytes": 1e9},
    },
    "link": {"bandwidth_bits_per_s": 8e6, "latency_s": 0.001},
    "links": {"slow - fast": {"bandwidth_bits_per_s": 8e9}},
}


def read(tree):
    return Fleet.from_tree(tree, "mine", "mine.yaml")


def test_speed_is_stated_or_measured():
    fast, slow, _ = read(TREE).devices
    # 2e6 FLOPs at 2e9 FLOP/s; training takes train_ratio times that
    assert (fast.forward_s(2e6), fast.train_s(2e6, 2.25)) == pytest.approx((0.001, 0.00225))
    # twice the reference workload, and the measured 5/2 instead of the ratio given
    assert slow.forward_s(2e6) == pytest.approx(0.004)
    assert slow.train_s(2e6, 99.0) == pytest.approx(0.010)


def test_a_link_holds_in_both_directions_and_the_default_for_every_other_pair():
    fleet = read(TREE)
    assert fleet.link("fast", "slow") == fleet.link("slow", "fast") == Link(8e9)
    assert fleet.link("fast", "far") == Link(8e6, 0.001)
    # 1000 bytes are 8000 bits at 8e6 bit/s
    assert fleet.link("far", "slow").seconds(1000) == pytest.approx(0.002)


def test_a_catalogue_comes_back_as_it_was_written(tmp_path):
    fleet = read(TREE)
    path = tmp_path / "new" / "mine.yaml"
    write_devices(fleet.to_tree(), path, "measured\non two machines")
    tree, found = read_devices(str(path))
    assert Fleet.from_tree(tree, "mine", str(found)) == fleet
    assert path.read_text().startswith("# measured\n# on two machines\ndevices:")


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("devices/*.yaml")), ids=lambda path: path.stem)
def test_shipped_catalogues_load_by_name_and_say_where_their_figures_come_from(path):
    tree, found = read_devices(path.stem)
    assert found == path
    assert len(Fleet.from_tree(tree, path.stem, str(path)).devices) >= 2
    header = path.read_text().split("devices:")[0]
    assert "make plan" in header and "Figures:" in header and "make profile" in header.replace("\n# ", " ")


def change(**changes):
    """A copy of the tree with dotted keys set, or removed where the value is None."""
    tree = copy.deepcopy(TREE)
    for key, value in changes.items():
        *above, last = key.split("__")
        place = tree
        for part in above:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return tree


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([], ["must be a mapping", "[]"]),
        (change(link=None), ["lacks link"]),
        (change(devices={}), ["devices must map at least one name"]),
        (change(devises={}), ["unknown key 'devises'", "did you mean devices?"]),
        (change(devices__fast__memory=1), ["devices.fast", "'memory'", "did you mean memory_bytes?"]),
        (change(devices__fast__memory_bytes=None), ["devices.fast", "lacks memory_bytes"]),
        (change(devices__fast__memory_bytes=0), ["devices.fast.memory_bytes", "a number from 1e-18 to 1e+21", "got 0"]),
        (change(devices__fast__overhead_s=-1), ["devices.fast.overhead_s", "0 or a number from", "got -1"]),
        (change(devices__fast__flops_per_s="many"), ["devices.fast.flops_per_s", "got 'many'"]),
        (change(devices__fast__flops_per_s=float("nan")), ["devices.fast.flops_per_s", "got nan"]),
        (change(devices__fast__flops_per_s=10**400), ["devices.fast.flops_per_s must be a number from"]),
        (change(devices__fast__flops_per_s=1e308), ["devices.fast.flops_per_s", "to 1e+21, got 1e+308"]),
        (change(devices__fast__overhead_s=5e-324), ["devices.fast.overhead_s", "0 or a number from 1e-18"]),
        (change(devices__fast__flops_per_s=None), ["devices.fast", "flops_per_s or by measured", "got none"]),
        (change(devices__slow__flops_per_s=1), ["devices.slow", "got both"]),
        (change(devices__slow__measured__train_s=None), ["devices.slow.measured", "lacks train_s"]),
        (change(link__bandwidth_bits_per_s=True), ["link.bandwidth_bits_per_s", "got True"]),
        (change(links={"fast - slw": {}}), ["links.fast - slw", "'slw'", "did you mean slow?"]),
        (change(links={"fast": {}}), ["device - device", "got 'fast'"]),
        (change(links={"fast - fast": {}}), ["two different ones"]),
    ],
)
def test_a_mistake_names_the_file_the_key_and_the_value(tree, said):
    with pytest.raises(ConfigError) as caught:
        read(tree)
    assert all(text in str(caught.value) for text in ["mine.yaml", *said]), caught.value


def test_a_file_that_is_not_there_or_no_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown devices 'jetsn4'; did you mean jetson4\?"):
        read_devices("jetsn4")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_devices(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml is no readable YAML file"):
        read_devices(str(tmp_path / "bad.yaml"))


def test_a_measured_device_is_written_with_its_reference():
    device = Device("x", 1.0, 0.0, None, Measured("w", 1.0, 2.0, 3.0))
    tree = Fleet("f", (device,), Link(1.0)).to_tree()
    assert yaml.safe_load(yaml.safe_dump(tree))["devices"]["x"]["measured"]["train_s"] == 3.0
