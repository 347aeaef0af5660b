import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers

from contextlora.backbones import load
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import fastest_dtype, load_backbone
from contextlora.backbones.size import model_size
from contextlora.errors import ConfigError
from contextlora.tasks.prompts import Prompt

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"


@pytest.mark.parametrize(
    ("kind", "sees", "model_class"),
    [
        ("gpt2", False, "GPT2LMHeadModel"),
        ("qwen2", False, "Qwen2ForCausalLM"),
        ("gemma", False, "GemmaForCausalLM"),
        ("llava", True, "LlavaForConditionalGeneration"),
    ],
)
def test_takes_the_class_that_the_config_names(backbone, kind, sees, model_class):
    loaded = backbone(kind)
    assert type(loaded.model).__name__ == model_class
    assert (loaded.is_multimodal, loaded.image_token) == (sees, "<image>" if sees else None)
    assert not loaded.model.training


@pytest.mark.skipif(not STORIES.is_dir(), reason="shared/data/stories260k does not lie beside the repository")
def test_a_real_checkpoint_continues_as_its_source_says():
    golden = (STORIES / "SOURCE.txt").read_text().split("24 tokens: ")[1].splitlines()[0]
    loaded = load_backbone(str(STORIES), dtype="float32")
    ids = loaded.model.generate(torch.tensor([[1]]), max_new_tokens=24, do_sample=False, min_new_tokens=24)
    assert ids[0].tolist() == [int(number) for number in golden.split()]


def test_fingerprint_ignores_dtype_and_notices_other_weights(backbone):
    loaded = backbone("qwen2")
    assert backbone("qwen2", dtype="bfloat16").fingerprint == loaded.fingerprint
    assert backbone("gemma").fingerprint != loaded.fingerprint
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight += 0.1
    assert load.fingerprint(loaded.model) != loaded.fingerprint


@pytest.mark.parametrize(
    ("usable", "capabilities", "dtype"),
    [
        ("AVX512", {}, torch.float32),
        ("AVX512", {"avx512_bf16": True}, torch.bfloat16),
        ("AVX512", {"amx_bf16": True}, torch.bfloat16),
        ("AVX2", {"avx512_bf16": True, "amx_bf16": True}, torch.float32),  # as the environment may ask
    ],
)
def test_auto_dtype_follows_the_processor_and_what_torch_may_use_of_it(monkeypatch, usable, capabilities, dtype):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: usable)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fastest_dtype("cpu") is dtype


def test_missing_folder(tmp_path):
    with pytest.raises(BackboneError, match="does not exist"):
        load_backbone(str(tmp_path / "nothing"))
    for name in ("./nothing", "x" * 300, f"./{'x' * 300}", "./a\0b", "~nobody-of-this-name/model"):
        with pytest.raises(BackboneError, match="does not exist") as caught:
            load_backbone(name)
        assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_is_no_file_in_a_checkpoint_is_not_waited_for(tmp_path, file):
    for name in {"config.json", "model.safetensors"} - {file}:
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / file)
    with pytest.raises(BackboneError, match=rf"{file} must be an ordinary file|holds no config\.json"):
        load_backbone(str(tmp_path))


def test_folder_without_config_or_safetensors(tmp_path):
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BackboneError, match="pickled ones are refused"):
        load_backbone(str(tmp_path))


def test_damaged_weights(checkpoint, tmp_path):
    for file in checkpoint("qwen2").iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:500] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "file", "old", "new", "said"),
    [
        (
            "qwen2",
            "config.json",
            '"hidden_size": 16',
            '"hidden_size": 0.5',
            "its config.json: .*'hidden_size' expected",
        ),
        (
            "qwen2",
            "config.json",
            '"hidden_size": 16',
            '"hidden_size": 24',
            r"weights must have other shapes .*\b285, 24",
        ),
        ("qwen2", "tokenizer.json", '"vocab": {', '"vocab": ', "no tokenizer that can be read .JSONDecodeError"),
        ("llava", "tokenizer.json", '"vocab": {', '"vocab": {"x": [],', "its processor or tokenizer: invalid type"),
        ("llava", "model.safetensors", "F32", "F99", "its weights: .*F99"),
    ],
)
def test_a_damaged_part_is_named_in_one_line(checkpoint, tmp_path, capfd, kind, file, old, new, said):
    folder = shutil.copytree(checkpoint(kind), tmp_path / "model")
    content = (folder / file).read_bytes()
    assert old.encode() in content
    (folder / file).write_bytes(content.replace(old.encode(), new.encode()))
    capfd.readouterr()  # of writing the checkpoint
    with pytest.raises(BackboneError, match=f"cannot be loaded: .*{said}") as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # no report of transformers' own


def test_checkpoint_without_a_head(backbone, tmp_path):
    loaded = backbone("qwen2")
    loaded.model.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="cannot be loaded: it lacks 1 weights of Qwen2ForCausalLM, lm_head"):
        load_backbone(str(tmp_path))


def test_unreachable_hub(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(load.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(
        BackboneError,
        match=r"owner/model cannot be loaded: We couldn't connect to the hub; ",
    ):
        load_backbone("owner/model")


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"chat_template": "on"}])
def test_unknown_settings(settings):
    with pytest.raises(BackboneError, match="got"):
        load_backbone("bundled", **settings)


@pytest.fixture
def foreign(checkpoint, tmp_path, monkeypatch):
    """(kind, file, what it maps to code) -> a checkpoint with code that leaves `ran` in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "modules")])
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks where there is a terminal

    def make(kind, file, mapped, model_type=None):
        folder = tmp_path / "foreign"
        shutil.copytree(checkpoint(kind), folder)
        written = json.loads((folder / file).read_text()) | {"auto_map": mapped}
        (folder / file).write_text(json.dumps(written | ({"model_type": model_type} if model_type else {})))
        (folder / "code.py").write_text(
            "open('ran', 'w').write('')\n"
            "from transformers import Qwen2Config, Qwen2ForCausalLM, PreTrainedTokenizerFast\n"
            "class Config(Qwen2Config): model_type = 'mine'\nclass Model(Qwen2ForCausalLM): config_class = Config"
            "\nclass Tokenizer(PreTrainedTokenizerFast): pass\n"
        )
        return folder

    return make


CONFIG = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


@pytest.mark.parametrize(
    ("kind", "file", "mapped", "model_type", "loads"),
    [
        ("qwen2", "config.json", CONFIG, "mine", False),
        ("qwen2", "config.json", CONFIG, None, True),  # transformers ships it under this name
        ("qwen2", "tokenizer_config.json", {"AutoTokenizer": [None, "code.Tokenizer"]}, None, True),
        ("llava", "processor_config.json", {"AutoProcessor": "code.Tokenizer"}, None, True),
    ],
)
def test_code_of_a_checkpoint_is_not_run(foreign, kind, file, mapped, model_type, loads):
    folder = foreign(kind, file, mapped, model_type)
    if loads:
        load_backbone(str(folder))
    else:
        with pytest.raises(BackboneError, match=r"brings code of its own.*model\.trust_remote_code=true") as caught:
            load_backbone(str(folder))
        assert len(str(caught.value)) - len(str(folder)) < 260
        with pytest.raises(ConfigError, match=re.escape(str(caught.value))):
            model_size(folder)
    assert not Path("ran").exists()


def test_code_of_a_checkpoint_runs_where_the_user_says_so_and_that_is_said(foreign, capsys):
    folder = foreign("qwen2", "config.json", CONFIG, "mine")
    assert type(load_backbone(str(folder), trust_remote_code=True).model).__name__ == "Model"
    assert Path("ran").exists()
    assert f"code that comes with model {folder}" in capsys.readouterr().err
    assert model_size(folder, trust_remote_code=True).hidden_size == 16
    assert f"code that comes with model {folder}" in capsys.readouterr().err


def test_a_tokenizer_that_needs_code_is_no_unreadable_one(foreign):
    folder = foreign("qwen2", "tokenizer_config.json", {"AutoTokenizer": ["code.Tokenizer", None]})
    # Of a family for which transformers has no tokenizer of its own.
    for file, changes in (
        ("config.json", {"model_type": "llama"}),
        ("tokenizer_config.json", {"tokenizer_class": "T"}),
    ):
        written = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(written))
    with pytest.raises(BackboneError, match=r"brings code of its own.*model\.trust_remote_code=true"):
        load_backbone(str(folder))
    assert not Path("ran").exists()


@pytest.mark.parametrize("kind", ["qwen2", "llava"])
def test_an_unknown_attention_is_refused_by_its_setting(checkpoint, kind):
    with pytest.raises(BackboneError, match=r"^model\.attn_implementation must be eager, .*, got 'flash_attention_9'$"):
        load_backbone(str(checkpoint(kind)), attn_implementation="flash_attention_9")


def test_folder_without_a_tokenizer(checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint("qwen2") / name, tmp_path)
    with pytest.raises(BackboneError, match=r"it has no tokenizer that can be read .* put tokenizer.json") as caught:
        load_backbone(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ nothing }}", "chat template of model .* makes nothing of a prompt"),
        ("{{ 1 / 0 }}", "its chat template: divi"),
    ],
)
def test_a_chat_template_that_fails_is_named(backbone, template, said):
    loaded = backbone("qwen2")
    loaded.tokenizer.chat_template, loaded.chat_template = template, True
    with pytest.raises(BackboneError, match=said):
        loaded.encode([Prompt("a", "lane", None, ("dry", "damp"), 0)])


def test_a_tokenizer_of_more_words_than_the_model_knows_is_refused(backbone):
    loaded = backbone("gemma")
    loaded.tokenizer.add_tokens(["mud"])
    with pytest.raises(BackboneError, match=r"gives 'mud' the number (\d+), its config.json has vocab_size=\1: put"):
        loaded.encode([Prompt("a", "lane", None, ("dry", "mud"), 0)])


@pytest.mark.parametrize("package", ["Torchvision", "num2words"])
def test_a_package_that_a_processor_lacks_is_named_with_the_extra(checkpoint, monkeypatch, package):
    def refuse(*_, **__):
        raise ImportError(f"Processor requires the {package} library but it was not found in your environment.")

    monkeypatch.setattr(load.AutoProcessor, "from_pretrained", refuse)
    with pytest.raises(BackboneError, match=rf"needs {package.lower()} .*pip install 'contextlora\[vision\]'"):
        load_backbone(str(checkpoint("llava")))
