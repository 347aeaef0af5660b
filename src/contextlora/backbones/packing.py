"""Options of several tokens in the prompt's own forward: behind the prompt, all options of an item share its row.

    columns      lane c2 . route ? options : main bridge , river side . answer : | main  | river
    positions    0    1  ...                                                  15 | 16    | 16
    main sees    everything up to `answer :` and itself
    river sees   everything up to `answer :` and itself, not `main`

A row is as long as its prompt and the tokens that its options really have. A second forward with a row for every option
reads as many tokens as the longest option of the batch has, for each: of real options, mostly padding.

A model can do so if it takes an attention mask for each pair of columns and a position for each: `can_pack` tries. An
option's last token is predicted and not read. Shapes: B prompts, K options, T prompt and L option tokens, M tokens of
options that a row reads.
"""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from contextlora.backbones.encoding import OptionBatch


def packed_inputs(batch: OptionBatch, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arguments of the one forward: the prompts' with (B, T + M) ids and positions and a (B, 1, T + M, T + M) mask."""
    reads, order, option, depth = _placed(batch)
    given = batch.option_ids[..., :-1].flatten(1).gather(1, order)
    positions = batch.inputs["position_ids"]
    return batch.inputs | {
        "input_ids": torch.cat([batch.inputs["input_ids"], given], dim=1),
        "position_ids": torch.cat([positions, positions[:, -1:] + (1 + depth) * reads], dim=1),
        "attention_mask": _mask(batch.inputs["attention_mask"].bool(), reads, option, depth, dtype),
    }


def predicting_columns(batch: OptionBatch) -> torch.Tensor:
    """The (1 + M) columns whose logits predict a token of an option."""
    ids = batch.inputs["input_ids"]
    return torch.arange(ids.shape[1] - 1, ids.shape[1] + batch.num_read, device=ids.device)


def packed_scores(batch: OptionBatch, logits: torch.Tensor) -> torch.Tensor:
    """(B, K) log-likelihood of every option from the (B, 1 + M, V) logits of `predicting_columns`."""
    reads, order, option, _ = _placed(batch)
    # In float32: bfloat16 keeps two to three digits, too few to tell close options apart.
    scores = F.log_softmax(logits[:, 0].float(), dim=-1).gather(1, batch.option_ids[..., 0])
    targets = batch.option_ids[..., 1:].flatten(1).gather(1, order)
    rest = -F.cross_entropy(logits[:, 1:].float().transpose(1, 2), targets, reduction="none")
    return scores.scatter_add(1, option, rest * reads)


def _placed(batch: OptionBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of the (B, M) columns behind the prompts: whether it holds a token, its place, option and depth."""
    has_next = batch.option_mask[..., 1:].flatten(1)  # an option's last token is predicted, never read
    order = has_next.int().argsort(dim=1, descending=True, stable=True)[:, : batch.num_read]
    length = batch.option_ids.shape[-1] - 1
    return has_next.gather(1, order), order, order // length, order % length


def _mask(
    is_prompt: torch.Tensor, reads: torch.Tensor, option: torch.Tensor, depth: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(B, 1, T + M, T + M): 0 where a column sees another, else the lowest number."""
    width = is_prompt.shape[1]
    size = width + reads.shape[1]
    columns = torch.arange(size, device=is_prompt.device)
    sees = is_prompt.new_zeros(len(is_prompt), size, size)
    sees[:, :, :width] = is_prompt[:, None] & (columns[:width] <= columns[:, None])
    same = (option[:, :, None] == option[:, None]) & (depth[:, None] <= depth[:, :, None])
    sees[:, width:, width:] = same & reads[:, None]
    sees |= columns == columns[:, None]  # padding sees itself: a softmax over nothing is no number
    return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def probe_batch() -> OptionBatch:
    """A prompt with three options, on which a model shows what it can do."""
    ids = torch.arange(3, 9)[None]
    options = torch.tensor([[[4, 5, 6], [7, 8, 0], [5, 5, 4]]])
    return OptionBatch(
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(6)[None]},
        option_ids=options,
        option_mask=options > 0,
        answer=torch.tensor([0]),
        task="",
        rows=range(1),
        batch_size=1,
        num_read=5,
    )


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Whether a model in eval mode gives packed options the scores that it gives each option alone."""
    batch = probe_batch().to(model.device)
    try:
        inputs = packed_inputs(batch, model.dtype)
        logits = model(**inputs, logits_to_keep=predicting_columns(batch), use_cache=False).logits
        found = packed_scores(batch, logits)[0]
        alone = torch.stack([score_alone(model, batch, number) for number in range(len(found))])
    except Exception:  # a model may stumble over what it does not know in any way
        return False
    # Far below what another attention would make of it, far above rounding.
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((found - alone).abs().max() < tolerance)


def score_alone(model: PreTrainedModel, batch: OptionBatch, number: int) -> torch.Tensor:
    """Log-likelihood of an option of a batch of one prompt, in a row of its own."""
    ids, option = batch.inputs["input_ids"], batch.option_ids[0, number][batch.option_mask[0, number]]
    logits = model(input_ids=torch.cat([ids, option[None]], dim=1), use_cache=False).logits[0].float()
    return F.log_softmax(logits[ids.shape[1] - 1 : -1], dim=-1).gather(1, option[:, None]).sum()
