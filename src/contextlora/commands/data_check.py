"""`contextlora data-check`: probes a task set for shortcuts."""

from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.evaluation.report import print_in_full
from contextlora.tasks.checks import check_table, check_taskset
from contextlora.tasks.tasksets import load_taskset


def data_check(config: RunConfig) -> None:
    """Runs the probes for shortcuts and prints their table.

    Raises:
        UserError: a probe breaks its limit.
    """
    checks = check_taskset(load_taskset(config.taskset))
    print_in_full(CONSOLE, check_table(checks))
    broken = [check for check in checks if not check.ok]
    if broken:
        raise UserError(f"{len(broken)} of {len(checks)} probes break their limit, see the table; mend the task set")
