import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from contextlora.assembly.build import build_data, build_module
from contextlora.backbones.scoring import option_scores
from contextlora.graph import TaskGraph
from contextlora.methods.o_lora import OLora, OLoraSettings
from contextlora.training.callbacks import LAST
from contextlora.training.checkpoint import load_checkpoint
from contextlora.training.stage_files import StageFiles

TASKS = ("a", "b", "c", "d")  # of the tiny task set, in topological order


def build(config):
    return build_module(config, build_data(config))


def test_each_task_trains_its_slice_on_top_of_the_frozen_ones_before_it():
    plan = OLora(OLoraSettings(rank=3)).plan(TaskGraph({"c": ["a"], "a": [], "b": []}))
    assert plan.stages == (("a",), ("b",), ("c",))
    assert plan.partition.ranks == {"a": 3, "b": 3, "c": 3}
    assert {task: (use.own, dict(use.prerequisites)) for task, use in plan.uses.items()} == {
        "a": (("a",), {}),
        "b": (("b",), {"a": 1.0}),
        "c": (("c",), {"a": 1.0, "b": 1.0}),
    }


def test_penalty_and_its_gradient_by_hand(make_config):
    module = build(make_config("method=o_lora", "method.orthogonality_weight=0.25"))
    adapted, method = module.adapted, module.method
    adapted.begin_stage({"c": module.plan.uses["c"]})
    state, expected = adapted.state.read(), 0.0
    for name in adapted.layers():
        A = {task: state[f"{name}.lora_A.{task}"] for task in TASKS}
        for earlier in ("a", "b"):
            for row in A[earlier]:
                for new in A["c"]:
                    expected += abs(float(row @ new))
    penalty = method.penalty(adapted, "c")
    assert float(penalty) == pytest.approx(0.25 * expected, rel=1e-5)

    penalty.backward()
    for name, leaf in zip(adapted.layers(), adapted.leaves("c"), strict=True):
        earlier = torch.cat([state[f"{name}.lora_A.a"], state[f"{name}.lora_A.b"]])
        torch.testing.assert_close(leaf.A.grad, 0.25 * (earlier @ state[f"{name}.lora_A.c"].T).sign().T @ earlier)
        assert leaf.B.grad is None
    adapted.end_stage()
    adapted.begin_stage({"a": module.plan.uses["a"]})
    assert method.penalty(adapted, "a") is None


@pytest.fixture
def run(make_config, check_resume):
    return check_resume(make_config("method=o_lora", "training.learning_rate=0.05"))


def test_a_run_resumes_keeps_frozen_bits_and_uses_all_slices_so_far(run, make_config, stage_weights, model_folder):
    config = make_config("method=o_lora", "training.learning_rate=0.05")
    assert run.results["method"] == "o_lora"
    assert all(0 <= row["final"] <= 1 for row in run.results["tasks"].values())

    last = load_checkpoint(run.path / "checkpoints" / LAST)["state_dict"]
    for task, weights in zip(TASKS, stage_weights(run), strict=True):
        assert {name.rpartition(".")[2] for name in weights} == {task}
        for name, value in weights.items():  # as its own stage left it
            assert torch.equal(last[name], value)

    module = build(config)
    files = StageFiles(run.path / "checkpoints", module)
    for stage in range(4):
        files.load(stage)
        for task in TASKS[: stage + 1]:
            assert set(module.uses[task].active) == set(TASKS[: stage + 1])
        for task in TASKS[stage + 1 :]:
            assert module.uses[task] == module.plan.uses[task]

    folder = run.path / "adapters" / "a"
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4 * config.method.rank
    batch = module.data.encode_items("a", module.data.taskset.items("a", "test"), None)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    exported = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad(), module.adapted.eval().active(module.uses["a"], "a"):
        torch.testing.assert_close(
            option_scores(module.adapted.model, batch), option_scores(exported, batch), rtol=0, atol=1e-5
        )
