"""Options of several tokens in rows of their own, where a model can neither pack them nor go on behind the prompt.

    row 1     lane c2 . route ? options : main bridge , river side . answer : main
    row 2     lane c2 . route ? options : main bridge , river side . answer : river

Recurrent layers drop what a second forward needs, and models that number places by what an image shows (M-RoPE) count
on from the wrong one. A row for every option, prompt and image included, asks nothing of a model, and costs a
prompt's forward for each option. Shapes: B prompts, K options, L tokens of the longest option.
"""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.packing import can_pack, probe_batch, score_alone
from contextlora.backbones.readable import derives_positions, has_position_ids
from contextlora.backbones.scoring import option_scores


def ways_to_read(model: PreTrainedModel) -> tuple[bool, bool]:
    """Whether a model packs options behind the prompt, and whether a second forward can read them there.

    Raises:
        BackboneError: it reads padding.
    """
    packs = can_pack(model)
    if not packs:  # one that packs heeds masks
        check_padding(model)
    packs = packs and not derives_positions(model)
    return packs, packs or can_continue(model)


@torch.enable_grad()
def can_continue(model: PreTrainedModel) -> bool:
    """Whether a second forward behind the prompt's keys and values scores options as each of them alone, and trains."""
    if derives_positions(model):
        return False
    batch = replace(probe_batch(), num_read=0).to(model.device)
    if not has_position_ids(model):
        batch.inputs.pop("position_ids")
    try:
        found = option_scores(model, batch)[0]
        # Some recurrent layers write over states that gradients need.
        torch.autograd.grad(found.sum(), model.get_input_embeddings().weight)
        alone = torch.stack([score_alone(model, batch, number) for number in range(len(found))])
    except Exception:  # a model may stumble over what it does not know in any way
        return False
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((found - alone).detach().abs().max() < tolerance)


@torch.no_grad()
def check_padding(model: PreTrainedModel) -> None:
    """Raises `BackboneError` for a model that padding in front of a prompt gives other scores, as in any batch."""
    ids = probe_batch().inputs["input_ids"].to(model.device)
    mask = torch.ones_like(ids)
    padded = {"input_ids": torch.cat([ids, ids], dim=1), "attention_mask": torch.cat([0 * mask, mask], dim=1)}
    if has_position_ids(model) and not derives_positions(model):
        padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    try:
        scores = [model(**inputs, use_cache=False).logits[0, -1].float() for inputs in ({"input_ids": ids}, padded)]
    except Exception:  # whatever it stumbles over, its first batch will show in the project's words
        return
    off = float((scores[0] - scores[1]).abs().max())
    if off > (1e-3 if model.dtype == torch.float32 else 0.5):
        raise BackboneError(
            f"{type(model).__name__} reads padding as if it were words (scores differ by {off:.2g}), so that its "
            "answers would depend on the other prompts of a batch; name another model"
        )
