"""`contextlora export --merge`: whole checkpoints that score as the run does."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from contextlora.backbones.load import load_backbone
from contextlora.backbones.scoring import option_scores
from contextlora.commands.export import export
from contextlora.errors import UserError
from tests.trained import trained_run


@pytest.fixture
def model_of(model_folder, other_model_folder):
    """kind -> a model's name."""

    def find(kind):
        return {"llama": model_folder, "bundled": "bundled"}.get(kind) or other_model_folder(kind)

    return find


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llava", "bundled"])
def test_a_merged_checkpoint_scores_as_the_run(kind, make_config, model_of, capsys):
    config = make_config(f"model={model_of(kind)}")
    run, module = trained_run(config, size=0.02 if kind == "bundled" else 0.3)
    export(config, run, merge=True)
    said = capsys.readouterr().out
    assert "merging into 4 checkpoints of" in said and said.splitlines()[-1].endswith("/merged")
    assert sorted(path.name for path in (run.path / "merged").iterdir()) == ["a", "b", "c", "d"]
    module.adapted.eval()  # no dropout
    for task in ("a", "d"):
        items = module.data.taskset.items(task, "test")
        merged = load_backbone(str(run.path / "merged" / task), dtype="float32")
        prompts = [module.data.prompt(task, item, module.data.right_context(task, item)) for item in items]
        with torch.no_grad():
            bare = option_scores(module.adapted.model, module.data.backbone.encode(prompts))
            with module.adapted.active(module.uses[task], task):
                ours = option_scores(module.adapted.model, module.data.backbone.encode(prompts))
            theirs = option_scores(merged.model, merged.encode(prompts))
        assert (ours - theirs).abs().max() <= 1e-4
        assert (ours - bare).abs().max() > 1e-2
        assert "The base with a LoRA merged" in (run.path / "merged" / task / "README.md").read_text()


def test_the_run_s_type_is_written_and_rounded_once(make_config):
    config = make_config("model.dtype=bfloat16")
    run, module = trained_run(config, size=0.3)
    export(config, run, merge=True)
    found = load_file(run.path / "merged/a/model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert json.loads((run.path / "merged/a/config.json").read_text())["dtype"] == "bfloat16"
    A, B = module.adapted.composed(module.uses["a"], "a")["model.layers.0.self_attn.q_proj"]
    base = load_backbone(config.model.name, dtype="float32").model.model.layers[0].self_attn.q_proj.weight
    expected = (base + module.adapted.config.scale * B @ A).bfloat16()
    wrong = found["model.layers.0.self_attn.q_proj.weight"] != expected
    assert wrong.float().mean() < 0.01  # where the sum's last digit decides


def test_a_full_disk_is_named_before_anything_is_merged(make_config, monkeypatch):
    config = make_config()
    run, _ = trained_run(config)
    usage = namedtuple("usage", "total used free")(1, 1, 1 << 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"4 checkpoints of 0 MiB, .* must fit on the run's disk"):
        export(config, run, merge=True)
    assert not (run.path / "merged").exists()


def test_a_merge_that_fails_leaves_the_one_before(make_config, monkeypatch):
    config = make_config()
    run, _ = trained_run(config)
    export(config, run, merge=True)
    before = {path: path.read_bytes() for path in (run.path / "merged").rglob("*") if path.is_file()}

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", no_space)
    with pytest.raises(OSError, match="No space left"):
        export(config, run, merge=True)
    assert {path: path.read_bytes() for path in (run.path / "merged").rglob("*") if path.is_file()} == before


def test_a_method_without_loras_is_refused(make_config):
    config = make_config("method=mole")
    run, _ = trained_run(config)
    with pytest.raises(UserError, match="mole is no ordinary LoRA"):
        export(config, run, merge=True)
    assert not (run.path / "merged").exists()
