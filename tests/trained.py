"""Modules and runs as training leaves them, with random weights in the place of trained ones."""

import torch

from contextlora.assembly.build import build_data, build_module
from contextlora.config import RunConfig, to_yaml
from contextlora.runs import RunFolder
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles


def trained_module(config: RunConfig, size: float = 1.0) -> ContextLoraModule:
    """With weights of this size, by which every slice, gate and router does something."""
    module = build_module(config, build_data(config))
    generator = torch.Generator().manual_seed(1)
    values = module.adapted.state.read()
    module.adapted.state.write({n: size * torch.randn(old.shape, generator=generator) for n, old in values.items()})
    return module


def trained_run(config: RunConfig, size: float = 1.0) -> tuple[RunFolder, ContextLoraModule]:
    """A run that is trained, but not evaluated, and the module that it keeps the weights of."""
    module = trained_module(config, size)
    run = RunFolder.create(config.runs_dir, config.taskset.name, config.method.name, 0, to_yaml(config))
    files = StageFiles(run.folder("checkpoints"), module)
    for stage, tasks in enumerate(module.plan.stages):
        files.save(stage, module.adapted.owners_trained_with({task: module.plan.uses[task] for task in tasks}))
    run.mark_trained()
    run._set_state("interrupted")
    return run, module
