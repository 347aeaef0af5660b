"""`contextlora resume`: the recipe of `train` from the last checkpoint on."""

import time

from contextlora.assembly.build import compute_device
from contextlora.assembly.placement import num_processes
from contextlora.commands.train import carry_out, module_and_plan, train_alongside
from contextlora.config import load_config
from contextlora.gear.processes import is_first_process, joined
from contextlora.runs import RunFolder


def resume(run: RunFolder, devices: int | None = None) -> None:
    """Continues a run that was interrupted, to the weights that it would have had; on other devices if told so."""
    began = time.monotonic()
    config = load_config([f"training.devices={devices}"] if devices else [], saved=run.config_file)
    if not is_first_process():
        train_alongside(config)
        return
    # First of all: a run that is alive is refused before processes start or a model loads.
    run.claim()
    with run.recording(), joined(num_processes(config), compute_device(config), train_alongside, config) as peers:
        module, plan = module_and_plan(config, peers)
        carry_out(config, module, run, began, peers, plan)
