"""Property 2, with native PEFT as the oracle: public API, one native adapter per group of ranks with one status."""

import peft
import pytest
import torch

from contextlora.graph import RankPartition, SliceUse

SCALE = 2.0  # of the `adapt` fixture: alpha 8 over rank 4


def native(model, pattern, slices):
    """A PeftModel with one native adapter per entry of slices: name -> (module -> (A, B), trains)."""
    for name, (factors, _) in slices.items():
        rank = len(next(iter(factors.values()))[0])
        config = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=pattern)
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config, adapter_name=name)
    model.base_model.set_adapter(list(slices))
    for name, (factors, trains) in slices.items():
        for module, (A, B) in factors.items():
            layer = model.base_model.model.get_submodule(module)
            for linear, values in ((layer.lora_A[name], A), (layer.lora_B[name], B)):
                linear.weight.data.copy_(values)
                linear.weight.requires_grad_(trains)
    return model.eval()


def factors_of(adapted, name, ranks=slice(None)):
    """module -> copies of A and B of some ranks of a slice; a list of ranks per module, or a slice."""
    state = adapted.state.read()
    chosen = ranks if isinstance(ranks, dict) else dict.fromkeys(adapted.layers(), ranks)
    return {m: (state[f"{m}.lora_A.{name}"][chosen[m]], state[f"{m}.lora_B.{name}"][:, chosen[m]]) for m in chosen}


def run(model, loss_of, batch, steps=4):
    """AdamW steps; returns the last logits."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    with torch.no_grad():
        return model(**batch).logits


def test_one_task_with_all_ranks_is_pefts_own_lora(architecture, adapt, tiny_model, inputs, loss_of):
    """Forward, gradients and AdamW: the same logits after training."""
    adapted = adapt(architecture, partition=RankPartition({"a": 4}))
    use, batch = SliceUse(("a",)), inputs(architecture)
    oracle = native(tiny_model(architecture), adapted.target_modules, {"a": (factors_of(adapted, "a"), True)})
    adapted.begin_stage({"t": use})
    with adapted.active(use, "t"):
        ours = run(adapted, loss_of, batch)
    torch.testing.assert_close(ours, run(oracle, loss_of, batch), rtol=0, atol=2e-5)


def test_partly_frozen_prerequisites_train_as_native_adapters_do(adapt, tiny_model, inputs, plan, loss_of):
    """c with a half frozen and b frozen: adapters c, a's open and frozen ranks, b; x stays out."""
    adapted, use, batch = adapt(), plan.uses["c"], inputs()
    adapted.begin_stage({"c": use})
    orders = adapted.stage_state()
    oracle = native(
        tiny_model(),
        adapted.target_modules,
        {
            "c": (factors_of(adapted, "c"), True),
            "a_open": (factors_of(adapted, "a", {m: order["a"][2:] for m, order in orders.items()}), True),
            "a_frozen": (factors_of(adapted, "a", {m: order["a"][:2] for m, order in orders.items()}), False),
            "b": (factors_of(adapted, "b"), False),
        },
    )
    with adapted.active(use, "c"):
        ours = run(adapted, loss_of, batch)
    torch.testing.assert_close(ours, run(oracle, loss_of, batch), rtol=0, atol=2e-5)
    # an independent path to the same adapter: PEFT's own concatenation
    oracle.add_weighted_adapter(["c", "a_open", "a_frozen", "b"], [1.0] * 4, "all", combination_type="cat")
    oracle.set_adapter("all")
    with torch.no_grad():
        torch.testing.assert_close(ours, oracle(**batch).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_acts_where_peft_s_does(p, adapt, tiny_model, inputs):
    adapted = adapt(partition=RankPartition({"a": 4}), dropout=p)
    oracle = native(tiny_model(), adapted.target_modules, {"a": (factors_of(adapted, "a"), True)})
    for layer in oracle.modules():
        if isinstance(layer, peft.tuners.lora.Linear):
            layer.lora_dropout["a"] = torch.nn.Dropout(p)
    results = []
    for model in (adapted.train(), oracle.train()):
        torch.manual_seed(0)
        with adapted.active(SliceUse(("a",))):
            results.append(model(**inputs()).logits)
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
