"""What the command line does: `commands/<name>.py` holds the function that is called for `contextlora <name>`."""

from rich.console import Console

CONSOLE = Console()
