"""`contextlora data-check`: probes a task set for shortcuts."""

from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.evaluation.report import print_in_full
from contextlora.tasks.checks import check_table, check_taskset, explanation_table, unprobed
from contextlora.tasks.tasksets import TASKSETS, load_taskset


def data_check(config: RunConfig, strict: bool = False) -> None:
    """Runs the probes for shortcuts, and prints their table and what each means.

    Args:
        config: names the task set.
        strict: whether a limit must hold, or an edge be probed, in a set of the user's too; in a shipped one it must.

    Raises:
        UserError: a probe breaks its limit, or an edge of the graph could not be probed, where that must not be.
    """
    taskset, strict = load_taskset(config.taskset), strict or config.taskset.name in TASKSETS
    checks, gaps = check_taskset(taskset), unprobed(taskset)
    # Real data is as it is: a prerequisite may well predict its child.
    print_in_full(CONSOLE, check_table(checks, failed="NO" if strict else "look"))
    print_in_full(CONSOLE, explanation_table(checks))
    for line in gaps:
        CONSOLE.print(line)
    num_broken = sum(not check.ok for check in checks)
    found = f"{num_broken} of {len(checks)} probes break their limit; edges that could not be probed: {len(gaps)}"
    if not strict:
        advice = "advice for a set of your own; --strict (make: ARGS=--strict) makes each a fault"
        CONSOLE.print(f"{found}; {advice}" if num_broken or gaps else "all probes keep their limits")
    elif num_broken or gaps:
        raise UserError(f"{found}, see above; mend the task set")
