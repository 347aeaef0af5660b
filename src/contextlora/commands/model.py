"""`contextlora model`: brings a published model here."""

from contextlora.backbones.fetch import fetch_model
from contextlora.backbones.published import MODELS_DIR, PUBLISHED
from contextlora.commands import CONSOLE
from contextlora.errors import UserError, suggestion
from contextlora.limits import shown


def model(name: str) -> None:
    """Fetches a model of `PUBLISHED` into `data/models/<name>`, where it is not there yet."""
    if name not in PUBLISHED:
        raise UserError(
            f"model NAME must be one of {', '.join(PUBLISHED)}, got {shown(name)}{suggestion(name, PUBLISHED)} "
            "(a hub id or a folder needs no fetching: give it as MODEL=...)"
        )
    published, folder = PUBLISHED[name], MODELS_DIR / name
    CONSOLE.print(f"{name}: {published.hub_id}; who uses it accepts its licence: {published.licence}")
    if not (folder / "config.json").exists():
        CONSOLE.print(f"from: {fetch_model(name, published, folder)}")
    CONSOLE.print(f"model: {folder}; use it with MODEL={name}")
