"""What trains beside the slices."""

from collections.abc import Mapping

from torch import Tensor, nn


class TrainableParts:
    """Named modules that train in every stage beside the slices: routers of a mixture, a receiver.

    Each module lives where it computes (a layer, a hook of the model); here stands who they are, for the optimizer (a
    group of their name), the checkpoints, the stage files and the version numbers of `adapters.state`.

    Args:
        name: of all of them, without a dot.
        modules: name -> module, float32.
    """

    def __init__(self, name: str, modules: Mapping[str, nn.Module]) -> None:
        assert "." not in name, name
        self.name, self.modules = name, dict(modules)

    def parameters(self) -> list[nn.Parameter]:
        """All that trains."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def tensors(self) -> dict[str, Tensor]:
        """Values under their names in a state: "<module>.lora_<name>.<parameter>"."""
        return {
            f"{module_name}.lora_{self.name}.{name}": parameter
            for module_name, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }
