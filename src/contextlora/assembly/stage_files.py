"""The weights that each stage left, in files among a run's checkpoints."""

from pathlib import Path

from contextlora.adapters import load_slices, save_slices
from contextlora.training.module import ContextLoraModule


class StageFiles:
    """Saves what a stage has trained, and puts the weights after any stage back.

    A file holds only what its stage trained, so that a graph of many tasks takes the room of one LoRA. The weights
    after a stage are the initial ones, which the seed fixes, and then those of all files up to it.

    Args:
        folder: of the files.
        module: whose weights.
    """

    def __init__(self, folder: Path, module: ContextLoraModule) -> None:
        self.folder, self.module = folder, module
        self._num_loaded = 0

    def path(self, stage: int) -> Path:
        """The file of a stage."""
        return self.folder / f"stage-{stage + 1}.safetensors"

    def save(self, stage: int, owners: set[str]) -> None:
        """Keeps the weights of these owners as they are now."""
        module = self.module
        save_slices(module.adapted, self.path(stage), module.data.backbone.fingerprint, owners, module.uses)

    def load(self, stage: int) -> None:
        """Makes weights and uses what they were after a stage, for all tasks that had been trained by then."""
        first = self._num_loaded if self._num_loaded <= stage else 0
        for number in range(first, stage + 1):
            uses = load_slices(self.module.adapted, self.path(number), self.module.data.backbone.fingerprint)
        if first <= stage:
            self.module.set_uses(uses)
        self._num_loaded = stage + 1

    def load_last(self) -> None:
        """The weights at the end of training."""
        self.load(len(self.module.plan.stages) - 1)
