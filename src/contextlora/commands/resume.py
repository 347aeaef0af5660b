"""`contextlora resume`: the recipe of `train` from the last checkpoint on."""

import time

from contextlora.assembly import compute_device, run_parts
from contextlora.commands.train import carry_out, module_and_plan, train_alongside
from contextlora.config import load_config
from contextlora.gear.processes import is_first_process, joined
from contextlora.placement import num_processes
from contextlora.runs import RunFolder


def resume(run: RunFolder, devices: int | None = None) -> None:
    """Continues a run that was interrupted, to the very weights that it would have had; on other devices if told so."""
    began = time.monotonic()
    config = load_config([f"training.devices={devices}"] if devices else [], saved=run.config_file)
    if not is_first_process():
        train_alongside(config)
        return
    run.claim()
    with run.recording(), joined(num_processes(config), compute_device(config), train_alongside, config) as peers:
        parts = run_parts(config)
        module, plan = module_and_plan(config, parts, peers)
        carry_out(config, parts, module, run, began, peers, plan)
