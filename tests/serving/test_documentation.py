"""The code in README.md and docs/serving.md, run as it stands, against a run of the same questions."""

import json
import re
from ast import literal_eval
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import contextlora
from contextlora.commands.export import export_tasks
from contextlora.config import load_config
from contextlora.tasks.generators import iov
from tests.trained import trained_run

ROOT = Path(__file__).parents[2]
README, SERVING = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/serving.md"))
WITH_IMAGE, TEXT_ALONE = re.findall(r"^```python\n(.*?)^```", SERVING, re.MULTILINE | re.DOTALL)
CAMERA = "data/iov/low-0/images/test/test-00000.png"


def blocks(text):
    """Code that is indented by four."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in found]


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """(model) -> a finished run of the first scenes of iov in the current folder, to be asked; `runs/latest`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    iov.build(Path("data/iov/low-0"), 0, {"train": 1, "validation": 1, "test": 1})

    def make(model):
        settings = ("taskset=data/iov/low-0", f"model={model}", "model.dtype=float32", "method.variant=gated")
        run, module = trained_run(load_config(settings), size=0.1)
        export_tasks(module, run, {})
        run.finish({})
        return contextlora.load("runs/latest")

    return make


def save_text_model(folder):
    """A tiny Llama whose words are several tokens each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT_ALONE], trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters))
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=300, initializer_range=0.2, **sizes)).save_pretrained(folder)


def test_the_forms_of_asking_and_the_script_without_this_project_give_one_answer(make_run, capsys):
    run = make_run("bundled")
    item = run.data.taskset.items("hazard", "test")[0]
    expected = run.ask("hazard", item.question, item.options, image=CAMERA)
    assert max(expected.probabilities.values()) < 0.999
    [asking] = [block for block in blocks(README) if "run.ask(" in block]
    exec(asking, {})
    assert capsys.readouterr().out == f"{expected}\n"
    first, chain = (block for block in blocks(SERVING) if "run.ask(" in block)
    names = {}
    exec(first, names)
    assert names["answer"] == expected
    exec(chain, names)
    assert list(names["answer"].prerequisites) == ["hazard", "grip", "manoeuvre"]
    assert names["answer"].prerequisites["hazard"] == expected
    capsys.readouterr()
    exec(WITH_IMAGE, {})
    assert literal_eval(capsys.readouterr().out) == pytest.approx(expected.probabilities, abs=1e-4)


def test_without_this_project_text_alone_gets_the_same_answer(make_run, capsys):
    save_text_model("my-model")
    run = make_run("./my-model")
    item = run.data.taskset.items("manoeuvre", "test")[0]
    asked = {"question": item.question, "options": item.options, "image_text": item.image_text}
    given = {"hazard": "massive", "grip": "fair"}
    expected = run.ask("manoeuvre", **asked, prerequisites=given).probabilities
    exec(TEXT_ALONE, {})
    assert literal_eval(capsys.readouterr().out) == pytest.approx(expected, abs=1e-4)
    assert max(expected.values()) < 0.999


@pytest.mark.parametrize("script", [WITH_IMAGE, TEXT_ALONE])
def test_the_scripts_are_short_and_need_nothing_of_this_project(script):
    assert "contextlora" not in script.replace("src/contextlora/backbones/bundled", "")
    assert len([line for line in script.splitlines() if line and "import" not in line]) <= 13


def test_an_adapter_says_what_it_is_and_where_its_base_lies(make_run):
    make_run("bundled")
    folder = Path("runs/latest/adapters/manoeuvre")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).is_absolute()
    assert Path(config["base_model_name_or_path"], "config.json").is_file()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {config['base_model_name_or_path']}\n" in card
    assert "hazard -> manoeuvre" in card and "the answers to hazard, grip" in card
    assert " what manoeuvre ? given : hazard " in card and "max_lora_rank=" in card
