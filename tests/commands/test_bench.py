"""Many runs: only the missing ones are made, several at once, and arguments of the bench scripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contextlora.commands import bench
from contextlora.commands.train import train
from contextlora.config import write_devices
from contextlora.errors import ConfigError
from contextlora.gear.planning.devices import Device, Fleet, Link, Measured

SCRIPT = Path(__file__).parents[2] / "bench" / "gear.py"


def test_run_missing_makes_only_what_is_not_there(make_config):
    configs = [make_config("training.steps_per_task=1", f"seed={seed}") for seed in range(3)]
    train(configs[0])
    runs = bench.run_missing(configs, jobs=2)
    assert [run.settings["seed"] for run in runs] == [0, 1, 2]
    assert len(list(Path(configs[0].runs_dir).glob("*/*/*/results.json"))) == 3
    assert runs[2].results["machine"]["threads"] == max(1, (bench.os.cpu_count() or 1) // 2)


def test_no_jobs_is_an_error(make_config):
    with pytest.raises(ConfigError, match="jobs must be at least 1, got 0"):
        bench.run_missing([make_config()], jobs=0)


def test_numbers_are_taken_out_of_the_arguments():
    numbers, settings = bench.read_arguments(["jobs=2", "seed=7", "method=joint"], seeds=5, jobs=1)
    assert numbers == [5, 2] and settings == ["seed=7", "method=joint"]
    assert bench.read_arguments(["cells=2", "rounds=2"], cells="", rounds=3) == (["2", 2], [])
    with pytest.raises(ConfigError, match="seeds must be a whole number, got 'x'"):
        bench.read_arguments(["seeds=x"], seeds=5)


def test_bench_gear_measures_every_variant_of_a_cell(taskset_folder, model_folder, tmp_path):
    """A device with 2 ms an item forward and 5 ms with backward, and free calls: the seconds below follow from that."""
    measured = Measured("made up", 1e6, 0.002, 0.005)
    device = Device("made-up", 1e9, 1e-4, measured=measured)
    write_devices(Fleet("made-up", (device,), Link(1e9)).to_tree(), tmp_path / "devices.yaml", "made up")
    settings = [f"taskset={taskset_folder}", f"model={model_folder}", f"runs_dir={tmp_path}", "training.batch_size=8"]
    options = ["cells=n2/two/loopback", "rounds=1", f"devices={tmp_path / 'devices.yaml'}"]
    shown = subprocess.run([sys.executable, SCRIPT, *options, *settings], capture_output=True, text=True, check=True)
    first, network, cell = json.loads((tmp_path / "bench" / "gear-emulated.json").read_text())
    assert first["calibration"]["measured"]["forward_s"] == 0.002
    assert list(network["links"]) == ["0-1"]
    seconds = {name: row["measured_s"] for name, row in cell["variants"].items()}
    work = first["work"]["tasks"][0]
    forward_s = 0.002 * 8 * work["forward_flops"] / 1e6
    chain_s = 2 * 0.002 * 8 * work["prerequisite_flops"] / 1e6
    assert seconds["one device"] == pytest.approx(chain_s + 2.5 * forward_s, rel=0.3)
    assert seconds["ContextGear"] == pytest.approx(max(chain_s, 2.5 * forward_s), rel=0.3)
    assert set(cell["chosen"].values()) <= set(seconds)
    assert len(seconds) == 9
    assert "ContextGear / bound" in shown.stdout
    assert (tmp_path / "bench" / "gear-emulated.png").stat().st_size > 10_000
