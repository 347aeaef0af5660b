import copy
import itertools
import pickle

import pytest
import torch

from contextlora.adapters import AdaptedModel, AdapterConfig, AdapterError
from contextlora.graph import GraphError, RankPartition, SliceUse


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_fresh_slices_change_nothing_and_the_base_is_frozen(architecture, adapt, tiny_model, inputs, plan):
    adapted, batch = adapt(architecture, random_values=False), inputs(architecture)
    expected = logits(tiny_model(architecture).eval(), batch)
    with adapted.active(plan.uses["a"], "a"):
        assert torch.equal(logits(adapted, batch), expected)  # B is zero
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_active_puts_slices_in_force_nests_and_restores(adapt, tiny_model, inputs, plan):
    adapted, batch = adapt(), inputs()
    base = logits(tiny_model().eval(), batch)
    assert torch.equal(logits(adapted, batch), base)
    with pytest.raises(KeyError), adapted.active(plan.uses["a"]):
        a = logits(adapted, batch)
        with adapted.active(plan.uses["b"]):
            b = logits(adapted, batch)
        with adapted.active(None):
            assert torch.equal(logits(adapted, batch), base)
        assert torch.equal(logits(adapted, batch), a)
        raise KeyError
    assert torch.equal(logits(adapted, batch), base)
    assert len({float(result.sum()) for result in (base, a, b)}) == 3


def test_initial_values_are_pefts_and_do_not_depend_on_other_tasks(adapt):
    few = adapt(random_values=False, partition=RankPartition({"a": 4, "b": 2}), seed=1).state.read()
    many = adapt(random_values=False, partition=RankPartition({"z": 8, "b": 2, "a": 4}), seed=1).state.read()
    assert few.keys() < many.keys()
    assert all(torch.equal(values, many[name]) for name, values in few.items())
    A = torch.cat([values.flatten() for name, values in few.items() if ".lora_A." in name and "down_proj" not in name])
    bound = 32**-0.5  # kaiming_uniform_(a=sqrt(5)) of an input of 32: +-1/sqrt(32)
    assert A.abs().max() <= bound and A.abs().max() > 0.99 * bound and A.mean().abs() < 0.01
    assert all(not values.any() for name, values in few.items() if ".lora_B." in name)
    same_shape = [few[f"model.layers.{block}.self_attn.{name}_proj.lora_A.a"] for block in (0, 1) for name in "qkvo"]
    assert not any(torch.equal(A, B) for A, B in itertools.combinations(same_shape, 2))
    other = adapt(random_values=False, partition=RankPartition({"a": 4}), seed=2).state.read()
    assert not any(torch.equal(values, few[name]) for name, values in other.items() if ".lora_A." in name)


def test_groups_and_counts_of_a_stage(adapt, plan):
    adapted = adapt(gated=True)
    # per block: q, o: 32 -> 32; k, v: 32 -> 16; gate, up: 32 -> 40; down: 40 -> 32
    per_rank = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 40))
    assert adapted.num_parameters() == 15 * per_rank + 3 * 14
    uses = {task: plan.uses[task] for task in plan.stages[1]}
    adapted.begin_stage(uses)
    groups = adapted.parameter_groups()
    counts = {kind: sum(p.numel() for p in parameters) for kind, parameters in groups.items()}
    # own: c and d; open: a's two ranks that c does not freeze; gates: a->c, b->c, a->d in 14 layers
    assert counts == {"own": 6 * per_rank, "open": 2 * per_rank, "gate": 3 * 14}
    assert adapted.num_trainable(uses) == sum(counts.values())
    trains = {id(parameter) for parameter in adapted.parameters() if parameter.requires_grad}
    assert trains == {id(parameter) for parameters in groups.values() for parameter in parameters}
    adapted.end_stage()
    assert adapted.parameter_groups() == {}
    assert adapted.num_trainable({"b": plan.uses["b"]}) == 2 * per_rank


def test_a_shared_slice_trains_in_every_task_of_a_joint_stage(adapt, train, inputs):
    uses = {"a": SliceUse(("all",)), "b": SliceUse(("all",))}
    adapted = adapt(partition=RankPartition({"all": 4}))
    adapted.begin_stage(uses)
    assert list(adapted.parameter_groups()) == ["own"]
    before = adapted.state.read()
    for task in uses:
        optimizer = torch.optim.AdamW(adapted.parameter_groups()["own"], lr=0.1)
        train(adapted, {task: uses[task]}, optimizer, inputs(), range(1))
        after = adapted.state.read()
        assert not any(torch.equal(after[name], before[name]) for name in before)
        before = after


def test_the_largest_ranks_of_each_module_stay_frozen(adapt, plan):
    adapted = adapt()
    adapted.begin_stage({"c": plan.uses["c"]})
    for module, orders in adapted.stage_state().items():
        state = {name: adapted.state.read()[f"{module}.lora_{name}.a"] for name in "AB"}
        by_hand = [float(torch.outer(state["B"][:, i], state["A"][i]).norm()) for i in range(4)]
        assert orders["a"] == sorted(range(4), key=lambda i: -by_hand[i])
    assert len({tuple(orders["a"]) for orders in adapted.stage_state().values()}) > 1


def test_state_names_shapes_and_round_trip(adapt):
    adapted = adapt(gated=True)
    state = adapted.state.read()
    module = "model.layers.1.mlp.down_proj"
    assert state[f"{module}.lora_A.x"].shape == (3, 40) and state[f"{module}.lora_B.x"].shape == (32, 3)
    assert state[f"{module}.lora_gate.a->c"].shape == ()
    assert len(state) == 14 * (2 * 5 + 3)
    assert all(values.dtype == torch.float32 and values.is_contiguous() for values in state.values())
    with torch.inference_mode():  # as in a validation hook, to keep the best values
        assert not any(values.is_inference() for values in adapted.state.read().values())
    fresh = adapt(random_values=False, gated=True, gate_init=0.25)
    assert fresh.state.read()[f"{module}.lora_gate.a->c"] == 0.25
    fresh.state.write(state)
    assert all(torch.equal(values, state[name]) for name, values in fresh.state.read().items())


@pytest.mark.parametrize("in_stage", [False, True])
def test_refuses_a_foreign_state_before_it_changes_anything(adapt, plan, in_stage):
    adapted = adapt()
    if in_stage:
        adapted.begin_stage({"c": plan.uses["c"]})
    state = adapted.state.read()
    first = next(iter(state))
    wrong = {
        "holds 1 foreign tensors, such as other": {**{n: v + 1 for n, v in state.items()}, "other": torch.zeros(1)},
        r"has shape \(1,\), expected \(4, 32\)": {**{n: v + 1 for n, v in state.items()}, first: torch.zeros(1)},
    }
    for words, foreign in wrong.items():
        with pytest.raises(AdapterError, match=words):
            adapted.state.write(foreign)
    assert all(torch.equal(values, state[name]) for name, values in adapted.state.read().items())


def test_refuses_a_stage_state_of_another_partition(adapt, plan):
    adapted = adapt()
    adapted.begin_stage({"c": plan.uses["c"]})
    state = adapted.stage_state()
    adapted.end_stage()
    state["model.layers.0.self_attn.q_proj"]["a"] = [0, 1, 2]
    with pytest.raises(AdapterError, match=r"does not fit slice 'a' of model.layers.0.self_attn.q_proj: .*\[0, 1, 2\]"):
        adapted.begin_stage({"c": plan.uses["c"]}, state)
    with pytest.raises(AdapterError, match="it holds None"):
        adapted.begin_stage({"c": plan.uses["c"]}, {})


def test_refuses_slices_and_gates_that_do_not_exist(adapt, plan):
    with pytest.raises(GraphError, match="unknown slice 'y'"), adapt().active(SliceUse(("y",))):
        pass
    with pytest.raises(AdapterError, match="'b' has no gate to task 'd'"):
        adapt(gated=True).begin_stage({"d": SliceUse(("d",), {"b": 1.0})})


def test_updates_too_small_for_bfloat16_are_not_lost(adapt, inputs, loss_of, plan):
    """Property 4: float32 leaves under a bfloat16 base, which `to` does not change."""
    adapted = adapt(dtype=torch.bfloat16, random_values=False).to(torch.bfloat16)
    adapted.begin_stage({"a": plan.uses["a"]})
    leaves = adapted.parameter_groups()["own"]
    assert {leaf.dtype for leaf in leaves} == {torch.float32}
    with torch.no_grad():
        for leaf in leaves:
            leaf.fill_(1.0)
    with adapted.active(plan.uses["a"], "a"):
        loss_of(adapted, inputs()).backward()
    torch.optim.AdamW(leaves, lr=1e-4, weight_decay=0.0).step()  # Adam's first step moves by up to lr
    moved = torch.cat([(leaf.detach() - 1.0).abs().flatten() for leaf in leaves])
    assert moved.median() > 1e-5 and moved.max() < 1.01e-4
    assert all((leaf.detach().bfloat16() == 1.0).all() for leaf in leaves)  # bfloat16 would have lost every one


def test_dropout_draws_only_in_training_mode(adapt, inputs, plan):
    adapted, batch = adapt(dropout=0.5), inputs()
    with adapted.active(plan.uses["a"], "a"):
        assert torch.equal(logits(adapted, batch), logits(adapted, batch))
        adapted.train()
        assert not torch.equal(logits(adapted, batch), logits(adapted, batch))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(duplicate, adapt, inputs, plan):
    adapted, batch = adapt(), inputs()
    twin = duplicate(adapted)
    with adapted.active(plan.uses["c"], "c"), twin.active(plan.uses["c"], "c"):
        assert torch.equal(logits(twin, batch), logits(adapted, batch))
    twin.state.write({name: torch.zeros_like(values) for name, values in twin.state.read().items()})
    assert all(values.any() for values in adapted.state.read().values())


def test_a_model_that_carries_an_adapter_gets_no_other(adapt, plan):
    adapted = adapt()
    with pytest.raises(AdapterError, match="this LlamaForCausalLM carries an adapter already: load the backbone again"):
        AdaptedModel(adapted.model, plan.partition, AdapterConfig())
