"""The bundled backbone's architecture: LLaVA form, CLIP vision tower + SmolLM3 text model, all shipped by transformers.

Four initialisations let a model of a few million parameters learn in minutes what else takes far longer:

* Layer 0's heads are fixed previous-token heads: every position sees the tokens at distance 1, 2 and 3. Query and key
  are constants (zero weights, biases only), turned by RoPE; with q = (1, 0) and k = (cos d f_i, sin d f_i) on the four
  highest RoPE frequencies f_i, the attention logit is sum_i cos((distance - d) f_i) and peaks at distance d. They stay
  frozen; values and outputs are learned.
* Layer 1 begins with two induction heads, and the output head begins as the embeddings: looking up and copying, which
  every skill needs, are there from the start. Every other layer has no positions (NoPE), so that contents match at any
  distance; the others know what is recent.
* Number words begin in order: most of an embedding is a smooth curve along 0 to 99, so that comparing two numbers does
  not need all pairs of them. The rest is random, which keeps neighbours apart.
* Patch positions are spoken in words: the position embedding of the patch in column i and row j starts as the sum of
  the word embeddings of `c<i>` and `r<j>`, and the projector starts as the identity.
"""

import math

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, SmolLM3Config

from contextlora.backbones.pretraining.vocabulary import END, IMAGE, NUMBERS, PAD, WORDS
from contextlora.tasks.renderers import CELL, COLUMNS, GRID, IMAGE_SIZE, ROWS

HIDDEN = 192
_HEAD_DIM = 32
_PREVIOUS_TOKENS = (1, 1, 2, 2, 3, 3)  # distance that each head of layer 0 looks back
_SHARPNESS = 70.0  # attention logit at the peak; the neighbouring positions then get less than 1e-4 of the weight
_NUM_FREQUENCIES = 4
_SMOOTH_SHARE = 0.8  # of the variance of a number word's embedding
_WAVELENGTHS = (16.0, 400.0)  # shortest and longest of the curve, in numbers
_MATCHING = 2.0  # of layer 1's queries and keys: a match then has a logit near 10


def make_config(num_layers: int = 6, num_vision_layers: int = 2) -> LlavaConfig:
    """Configuration of the bundled backbone."""
    return LlavaConfig(
        vision_config=_vision_config(num_vision_layers),
        text_config=_text_config(num_layers),
        image_token_index=WORDS.index(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        projector_hidden_act="linear",
        tie_word_embeddings=False,
        pad_token_id=WORDS.index(PAD),
        eos_token_id=WORDS.index(END),
    )


def _vision_config(num_layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=CELL,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=num_layers,
        num_attention_heads=HIDDEN // _HEAD_DIM,
        hidden_act="gelu",
    )


def _text_config(num_layers: int) -> SmolLM3Config:
    return SmolLM3Config(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=num_layers,
        num_attention_heads=len(_PREVIOUS_TOKENS),
        num_key_value_heads=len(_PREVIOUS_TOKENS),
        head_dim=_HEAD_DIM,
        attention_bias=True,
        no_rope_layers=[int(layer % 2 == 0) for layer in range(num_layers)],  # 1: rotary positions, 0: none
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=WORDS.index(PAD),
        eos_token_id=WORDS.index(END),
        bos_token_id=None,
        use_cache=False,
    )


def build_model(config: LlavaConfig) -> tuple[LlavaForConditionalGeneration, list[nn.Parameter]]:
    """Makes an initialised model (from torch's global random state) in float32.

    Returns:
        The model, and its fixed parameters (layer 0's queries and keys), which must not be trained.
    """
    model = LlavaForConditionalGeneration(config)
    language, width = model.model.language_model, config.text_config.hidden_size
    with torch.no_grad():
        language.embed_tokens.weight.normal_()
        _order_numbers(language.embed_tokens.weight)
        model.lm_head.weight.copy_(language.embed_tokens.weight / math.sqrt(width))  # copying is easy from the start
        for module in (*language.layers.modules(), *model.model.vision_tower.modules()):
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    module.bias.zero_()
        for layer in language.layers:  # residual branches start small
            layer.self_attn.o_proj.weight.mul_(0.5)
            layer.mlp.down_proj.weight.mul_(0.5)
        fixed = _fix_previous_token_heads(language.layers[0].self_attn, config)
        if len(language.layers) > 1:
            _start_induction_heads(language.layers[0].self_attn, language.layers[1].self_attn)
        _name_patch_positions(model)
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            linear.weight.copy_(torch.eye(width))
            linear.bias.zero_()
    return model, fixed


def _order_numbers(words: torch.Tensor) -> None:
    """Puts the number words' rows of (vocabulary, d) embeddings on a smooth curve; their variance stays 1."""
    shortest, longest = (math.log10(wavelength) for wavelength in _WAVELENGTHS)
    frequencies = 2 * math.pi / torch.logspace(shortest, longest, _HEAD_DIM // 2)
    angles = torch.arange(float(len(NUMBERS)))[:, None] * frequencies
    curve = torch.cat((angles.cos(), angles.sin()), dim=1)  # squared norm: the number of frequencies
    directions = torch.linalg.qr(torch.randn(HIDDEN, curve.shape[1])).Q.T
    smooth = curve @ directions * math.sqrt(HIDDEN / len(frequencies))
    rows = [WORDS.index(number) for number in NUMBERS]
    words[rows] = math.sqrt(1 - _SMOOTH_SHARE) * words[rows] + math.sqrt(_SMOOTH_SHARE) * smooth


def _fix_previous_token_heads(attention: nn.Module, config: LlavaConfig) -> list[nn.Parameter]:
    text = config.text_config
    theta = text.rope_parameters["rope_theta"]
    half = text.head_dim // 2
    frequencies = theta ** (-torch.arange(_NUM_FREQUENCIES) / half)
    query, key = (torch.zeros(text.num_attention_heads, text.head_dim) for _ in range(2))
    # The peak logit is scale^2 x number of frequencies / sqrt(head_dim).
    scale = math.sqrt(_SHARPNESS * math.sqrt(text.head_dim) / _NUM_FREQUENCIES)
    query[:, :_NUM_FREQUENCIES] = scale
    for head, distance in enumerate(_PREVIOUS_TOKENS):
        key[head, :_NUM_FREQUENCIES] = scale * torch.cos(distance * frequencies)
        key[head, half : half + _NUM_FREQUENCIES] = scale * torch.sin(distance * frequencies)
    for projection, bias in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight.zero_()
        projection.bias.copy_(bias.flatten())
    modules = (attention.q_proj, attention.k_proj)
    fixed = [parameter for module in modules for parameter in module.parameters()]
    for parameter in fixed:
        parameter.requires_grad_(False)
    return fixed


def _start_induction_heads(first: nn.Module, second: nn.Module) -> None:
    """Heads 0 and 1 of layer 1 start out copying what followed the last occurrence of the present token.

    With three orthogonal subspaces p, q, r of the residual stream: layer 0's heads of distance 1 read p of the previous
    token and write it to q; layer 1 matches p of the present token with q of every token, and copies r.
    """
    width = 2 * _HEAD_DIM
    basis = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q
    p, q, r = basis[:width], basis[width : 2 * width], basis[2 * width : 3 * width]
    first.v_proj.weight[:width] = p
    first.o_proj.weight[:, :width] = q.T
    second.q_proj.weight[:width] = _MATCHING * p
    second.k_proj.weight[:width] = _MATCHING * q
    second.v_proj.weight[:width] = r
    second.o_proj.weight[:, :width] = 2.0 * r.T


def _name_patch_positions(model: LlavaForConditionalGeneration) -> None:
    words = model.model.language_model.embed_tokens.weight
    embeddings = model.model.vision_tower.embeddings
    embeddings.patch_embedding.weight.normal_(std=1 / math.sqrt(embeddings.patch_embedding.weight[0].numel()))
    embeddings.position_embedding.weight[0].normal_()
    for row, row_word in enumerate(ROWS):
        for column, column_word in enumerate(COLUMNS):
            position = words[WORDS.index(column_word)] + words[WORDS.index(row_word)]
            embeddings.position_embedding.weight[1 + row * GRID + column] = position
