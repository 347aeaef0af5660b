"""Property 5: a trained task leaves as an ordinary PEFT adapter."""

import json

import peft
import pytest
import safetensors.torch
import torch

from contextlora.adapters import AdapterError, export_adapter


def reload(folder, model):
    return peft.PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize("task", ["a", "c"])
@pytest.mark.parametrize("gated", [False, True])
def test_unmodified_peft_gives_the_same_logits(task, gated, architecture, adapt, tiny_model, inputs, plan, tmp_path):
    adapted, batch = adapt(architecture, gated=gated), inputs(architecture)
    export_adapter(adapted, task, plan.uses[task], tmp_path / task, "base")
    config = json.loads((tmp_path / task / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (architecture == "gpt2")  # as PEFT writes it for transposed weights
    loaded = reload(tmp_path / task, tiny_model(architecture))
    with torch.no_grad(), adapted.active(plan.uses[task], task):
        ours, theirs = adapted(**batch).logits, loaded(**batch).logits
    assert (ours - theirs).abs().max() <= 1e-6
    layers = {name for name, module in loaded.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert layers == set(adapted.layers())
    with torch.no_grad():
        merged = loaded.merge_and_unload()(**batch).logits
    torch.testing.assert_close(merged, ours, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert (tiny_model(architecture).eval()(**batch).logits - ours).abs().max() > 0.01


def test_the_files_hold_the_active_ranks_only(adapt, plan, tmp_path):
    adapted = adapt(gated=True)
    export_adapter(adapted, "c", plan.uses["c"], tmp_path / "c", "some/base")
    config = json.loads((tmp_path / "c/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == "some/base"
    assert config["r"] == 10 and config["lora_alpha"] == 20  # 4 + 4 + 2 ranks, alpha' / r' = s = 2
    assert not config["rank_pattern"] and not config["alpha_pattern"]  # vLLM reads neither
    tensors = safetensors.torch.load_file(tmp_path / "c/adapter_model.safetensors")
    assert len(tensors) == 2 * 14
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {10}
    state, module = adapted.state.read(), "model.layers.0.mlp.up_proj"
    B = tensors[f"base_model.model.{module}.lora_B.weight"]
    assert torch.equal(B[:, :4], state[f"{module}.lora_B.c"])
    assert torch.equal(B[:, 4:8], state[f"{module}.lora_B.a"] * state[f"{module}.lora_gate.a->c"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_exports_in_mid_stage_what_was_trained_so_far(adapt, train, tiny_model, inputs, plan, tmp_path):
    adapted, uses, batch = adapt(), {"c": plan.uses["c"]}, inputs()
    adapted.begin_stage(uses)
    optimizer = torch.optim.AdamW([p for group in adapted.parameter_groups().values() for p in group], lr=0.1)
    train(adapted, uses, optimizer, batch, range(2))
    export_adapter(adapted, "c", uses["c"], tmp_path / "c", "base")
    with torch.no_grad(), adapted.active(uses["c"], "c"):
        difference = adapted(**batch).logits - reload(tmp_path / "c", tiny_model())(**batch).logits
    assert difference.abs().max() <= 1e-5  # sums over ranks in another order


def test_names_of_layers_are_a_list_where_they_name_no_others(adapt, plan, tmp_path):
    for pattern, expected in (
        ("language-linear", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        (r"model\.layers\.0\..*q_proj", r"model\.layers\.0\..*q_proj"),  # the other blocks have one too
    ):
        adapted = adapt(target_modules=pattern)
        export_adapter(adapted, "a", plan.uses["a"], tmp_path / "out", "base", "# a card")
        written = json.loads((tmp_path / "out/adapter_config.json").read_text())["target_modules"]
        assert (sorted(written) if isinstance(written, list) else written) == expected
        assert (tmp_path / "out/README.md").read_text() == "# a card"


def test_replaces_an_earlier_export_and_nothing_else(adapt, plan, tmp_path):
    adapted = adapt()
    for task in ("c", "a"):
        export_adapter(adapted, task, plan.uses[task], tmp_path / "out", "base")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 4
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="exists and is no exported adapter"):
        export_adapter(adapted, "c", plan.uses["c"], tmp_path / "out", "base")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_failed_export_leaves_the_earlier_one_untouched(adapt, plan, tmp_path, monkeypatch):
    adapted = adapt()
    export_adapter(adapted, "a", plan.uses["a"], tmp_path / "out", "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("contextlora.adapters.export.save_file", no_space)
    with pytest.raises(OSError, match="No space left"):
        export_adapter(adapted, "c", plan.uses["c"], tmp_path / "out", "base")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_slices_that_a_router_weighs_are_not_exported_as_their_sum(adapt, plan, tmp_path):
    adapted = adapt()
    next(iter(adapted.layers().values())).lora_router = torch.nn.Identity()
    with pytest.raises(AdapterError, match="a router weighs token by token are no ordinary LoRA"):
        export_adapter(adapted, "c", plan.uses["c"], tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()
