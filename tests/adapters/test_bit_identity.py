"""Property 1: what does not train is bit-identical after a stage; a resume continues bit by bit."""

import io

import pytest
import torch

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5),
    "fused adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5),
}


def make_optimizer(adapted, kind="adamw"):
    return OPTIMIZERS[kind]([{"params": parameters} for parameters in adapted.parameter_groups().values()])


def stage_uses(plan, index):
    return {task: plan.uses[task] for task in plan.stages[index]}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("gated", [False, True])
def test_frozen_and_masked_ranks_do_not_move(kind, gated, adapt, train, inputs, plan):
    adapted = adapt(gated=gated)
    base = {name: values.clone() for name, values in adapted.state_dict().items() if "lora_" not in name}
    before = adapted.state.read()
    adapted.begin_stage(stage_uses(plan, 1))
    orders = adapted.stage_state()
    optimizer = make_optimizer(adapted, kind)
    train(adapted, stage_uses(plan, 1), optimizer, inputs(), range(6))
    adapted.end_stage()
    after = adapted.state.read()

    for module in adapted.layers():
        for name in ("b", "x"):  # frozen whole, masked
            assert torch.equal(after[f"{module}.lora_A.{name}"], before[f"{module}.lora_A.{name}"])
            assert torch.equal(after[f"{module}.lora_B.{name}"], before[f"{module}.lora_B.{name}"])
        frozen, trained = orders[module]["a"][:2], orders[module]["a"][2:]  # c freezes half of a, d more
        moved_A = after[f"{module}.lora_A.a"] != before[f"{module}.lora_A.a"]
        moved_B = after[f"{module}.lora_B.a"] != before[f"{module}.lora_B.a"]
        assert not moved_A[frozen].any() and not moved_B[:, frozen].any()
        assert moved_A[trained].any(dim=1).all() and moved_B[:, trained].any(dim=0).all()
        for name in ("c", "d"):
            assert (after[f"{module}.lora_A.{name}"] != before[f"{module}.lora_A.{name}"]).any(dim=1).all()
    for name, values in base.items():
        assert torch.equal(adapted.state_dict()[name], values)


def test_a_rank_open_for_one_task_rests_in_the_batches_of_another(adapt, train, inputs, plan):
    """Neither weight decay nor the momentum of c's steps moves it in d's steps."""
    adapted, uses = adapt(), stage_uses(plan, 1)
    adapted.begin_stage(uses)
    optimizer = make_optimizer(adapted)
    train(adapted, {"c": uses["c"]}, optimizer, inputs(), range(2))
    before = adapted.state.read()
    train(adapted, {"d": uses["d"]}, optimizer, inputs(), range(2))
    after = adapted.state.read()
    for module, orders in adapted.stage_state().items():
        moved = (after[f"{module}.lora_A.a"] != before[f"{module}.lora_A.a"]).any(dim=1)
        assert moved[orders["a"][3:]].all() and not moved[orders["a"][:3]].any()  # d freezes three of four
        assert torch.equal(after[f"{module}.lora_B.c"], before[f"{module}.lora_B.c"])


def checkpoint(adapted, optimizer):
    """To disk and back, without pickled code."""
    buffer = io.BytesIO()
    torch.save((adapted.state.read(), adapted.stage_state(), optimizer.state_dict()), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("policy", ["largest", "random"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_in_mid_stage_is_bit_identical(policy, gated, architecture, dtype, adapt, train, inputs, plan):
    batch, uses = inputs(architecture), stage_uses(plan, 1)
    settings = {"gated": gated, "frozen_policy": policy}
    whole = adapt(architecture, dtype, **settings)
    whole.begin_stage(uses)
    optimizer = make_optimizer(whole)
    train(whole, uses, optimizer, batch, range(3))
    values, stage, moments = checkpoint(whole, optimizer)
    train(whole, uses, optimizer, batch, range(3, 6))

    resumed = adapt(architecture, dtype, random_values=False, **settings)  # a new process: fresh values
    resumed.begin_stage(uses, state=stage)
    resumed.state.write(values)
    optimizer = make_optimizer(resumed)
    optimizer.load_state_dict(moments)
    train(resumed, uses, optimizer, batch, range(3, 6))

    assert resumed.stage_state() == whole.stage_state()
    for model in (whole, resumed):
        model.end_stage()
    expected = whole.state.read()
    for name, tensor in resumed.state.read().items():
        assert torch.equal(tensor, expected[name]), name
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in values.items())


def test_values_may_also_be_loaded_before_the_stage(adapt, train, inputs, plan):
    uses = stage_uses(plan, 1)
    whole = adapt()
    whole.begin_stage(uses)
    optimizer = make_optimizer(whole)
    train(whole, uses, optimizer, inputs(), range(2))
    values, stage, _ = checkpoint(whole, optimizer)
    resumed = adapt(random_values=False)
    resumed.state.write(values)
    resumed.begin_stage(uses, state=stage)
    for new, old in zip(resumed.parameter_groups()["open"], whole.parameter_groups()["open"], strict=True):
        assert torch.equal(new, old)


def test_loading_keeps_the_parameters_that_the_optimizer_holds(adapt, train, inputs, plan):
    """Best-weights restore at the end of a stage."""
    uses, adapted = stage_uses(plan, 1), adapt()
    adapted.begin_stage(uses)
    best = adapted.state.read()
    leaves = adapted.parameter_groups()["own"]
    train(adapted, uses, make_optimizer(adapted), inputs(), range(2))
    adapted.state.write(best)
    assert all(new is old for new, old in zip(adapted.parameter_groups()["own"], leaves, strict=True))
    adapted.end_stage()
    assert all(torch.equal(values, best[name]) for name, values in adapted.state.read().items())
