import pytest

from contextlora.commands.export import export
from contextlora.errors import UserError
from contextlora.graph import TaskGraph
from contextlora.methods.contextlora import ContextLora
from contextlora.methods.mole import Mole, MoleSettings

GRAPH = TaskGraph({"a": [], "b": ["a"], "c": ["b"]})


def test_a_layer_weighs_all_experts_by_a_softmax_of_each_token(check_experts):
    check_experts(None, lambda logits: logits.exp() / logits.exp().sum(dim=-1, keepdim=True))


def test_all_tasks_use_all_experts_and_every_second_one_gives_up_a_rank():
    plan = Mole(MoleSettings(rank=8)).plan(GRAPH)
    assert plan.partition.ranks == {"a": 8, "b": 7, "c": 8}
    assert plan.stages == (("a", "b", "c"),)
    assert {(use.own, tuple(use.prerequisites)) for use in plan.uses.values()} == {(("a", "b", "c"), ())}
    assert Mole(MoleSettings(rank=1)).plan(GRAPH).partition.ranks == {"a": 1, "b": 1, "c": 1}


def test_parameters_with_the_routers_are_those_of_contextlora_within_two_percent(num_parameters):
    assert num_parameters(Mole()) == pytest.approx(num_parameters(ContextLora()), rel=0.02)


def test_only_routers_train_at_their_own_rate():
    method = Mole(MoleSettings(router_learning_rate=0.5))
    assert (method.peak_rate("router", 0.1), method.peak_rate("own", 0.1)) == (0.5, 0.1)


def test_a_run_resumes_with_its_routers_and_is_not_exported(make_config, check_resume, stage_weights):
    config = make_config("method=mole", "method.router_learning_rate=0.01")
    run = check_resume(config)
    (weights,) = stage_weights(run)
    routers = [value for name, value in weights.items() if name.endswith("lora_router.gate.weight")]
    assert len(routers) == 14  # adapted layers of the tiny model
    assert all(router.abs().max() > 0 for router in routers)  # they start at 0
    assert run.results["method"] == "mole"
    assert all(0 <= row["final"] <= 1 for row in run.results["tasks"].values())
    assert not (run.path / "adapters").exists()
    with pytest.raises(UserError, match=r"^mole is no ordinary LoRA, which PEFT could load: use the run itself$"):
        export(config, run)
