"""What several methods are tested with: a layer of experts, and runs of the tiny task set."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contextlora.adapters import AdaptedModel, AdapterConfig
from contextlora.adapters.layer import RankSliceLinear
from contextlora.adapters.slices import ActiveUse, RankSlices
from contextlora.backbones.load import load_backbone
from contextlora.commands.resume import resume
from contextlora.commands.train import train
from contextlora.config import RunConfig
from contextlora.graph import RankPartition, SliceUse, TaskGraph
from contextlora.methods import Method
from contextlora.methods.routing import Router
from contextlora.runs import RunFolder, find_runs
from contextlora.training.module import ContextLoraModule

D_IN, D_OUT, SCALE = 5, 7, 2.0
EXPERTS = {"a": 2, "b": 1, "c": 3, "d": 2}


@pytest.fixture
def check_experts() -> Callable[[int | None, Callable[[Tensor], Tensor]], None]:
    """(top_k, (N, E) logits -> weights) -> checks a layer against W0 x + s sum_e w_e(x) B_e A_e x, in float64.

    Values, and the gradients of all A and B, of the router and of x, by autograd through the sum.
    """

    def check(top_k: int | None, weights_of: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        use = SliceUse(tuple(EXPERTS))
        active = ActiveUse(use, "task")
        slices = RankSlices(D_IN, D_OUT, RankPartition(EXPERTS), (), SCALE, active, torch.device("cpu"))
        slices.A.normal_()
        slices.B.normal_()
        layer = RankSliceLinear(nn.Linear(D_IN, D_OUT).double().requires_grad_(False), slices, dropout=0.0)
        layer.lora_router = Router(D_IN, len(EXPERTS), torch.device("cpu"), top_k, records=False).double()
        nn.init.normal_(layer.lora_router.gate.weight)
        slices.begin_stage({"task": use}, {})
        x = torch.randn(2, 6, D_IN, dtype=torch.float64, requires_grad=True)

        weights = weights_of(x @ layer.lora_router.gate.weight.T)
        expected = layer.base_layer(x)
        for place, leaf in enumerate(slices.leaves):
            expected = expected + SCALE * weights[..., place, None] * (x @ leaf.A.T.double() @ leaf.B.T.double())
        found = layer(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

        moving = [x, layer.lora_router.gate.weight, *(one for leaf in slices.leaves for one in (leaf.A, leaf.B))]
        factor = torch.randn_like(found)
        ours = torch.autograd.grad((found * factor).sum(), moving)
        theirs = torch.autograd.grad((expected * factor).sum(), moving)
        for one, other in zip(ours, theirs, strict=True):
            assert other.abs().max() > 0.1
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # leaves are float32

    return check


@pytest.fixture
def num_parameters() -> Callable[[Method], int]:
    """Method -> how many numbers it trains in all on the bundled model and the graph of iov."""
    graph = TaskGraph({"hazard": [], "grip": [], "manoeuvre": ["hazard", "grip"], "route": ["hazard", "manoeuvre"]})

    def count(method: Method) -> int:
        plan = method.plan(graph)
        config = AdapterConfig(**method.adapter_settings)
        adapted = AdaptedModel(load_backbone("bundled").model, plan.partition, config, plan.edges)
        method.inject(adapted)
        return adapted.num_parameters()

    return count


@pytest.fixture
def stage_weights() -> Callable[[RunFolder], list[dict[str, Tensor]]]:
    """Run -> the tensors of each stage file."""

    def read(run: RunFolder) -> list[dict[str, Tensor]]:
        folder = run.folder("checkpoints")
        return [load_file(folder / f"stage-{k + 1}.safetensors") for k in range(len(run.results["stages"]))]

    return read


@pytest.fixture
def train_interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig, int], RunFolder]:
    """(configuration, number of an interval) -> a run that stopped when this interval began, and then went on."""
    start = ContextLoraModule.on_train_epoch_start

    def run(config: RunConfig, interval: int) -> RunFolder:
        def interrupt(self: ContextLoraModule) -> None:
            start(self)
            if len(self.progress.history) == interval:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ContextLoraModule, "on_train_epoch_start", interrupt)
            train(config)
        (stopped,) = find_runs(Path(config.runs_dir), finished=False)
        resume(stopped)
        return stopped

    return run


@pytest.fixture
def check_resume(train_interrupted, stage_weights) -> Callable[[RunConfig], RunFolder]:
    """Checks that runs that stop within and between stages leave the bits of a whole one, which it returns."""

    def check(config: RunConfig) -> RunFolder:
        whole = train(config)
        for interval in (1, 3 if len(whole.results["stages"]) > 1 else 2):
            found = stage_weights(train_interrupted(config, interval))
            for ours, theirs in zip(found, stage_weights(whole), strict=True):
                assert ours.keys() == theirs.keys()
                for name in theirs:
                    assert torch.equal(ours[name], theirs[name]), name
        return whole

    return check
