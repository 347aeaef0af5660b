"""What the command line does: `commands/<name>.py` holds the function that is called for `contextlora <name>`."""

import os
import sys

from rich.console import Console


class LastingConsole(Console):
    """Goes on in silence where nobody reads any more (`train | head -1`): the run is worth more than its lines."""

    def on_broken_pipe(self) -> None:
        """Everything else that prints to this pipe goes nowhere too, instead of failing."""
        self.quiet = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


# Names are printed as they are, `[a]` and `:b:` too, and a long line is broken by a terminal alone.
CONSOLE = LastingConsole(markup=False, emoji=False, highlight=False, soft_wrap=True)
