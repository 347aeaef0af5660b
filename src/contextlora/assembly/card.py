"""The README.md of an exported adapter: what someone needs to know who has nothing but its folder."""

from collections.abc import Mapping

from contextlora.training.module import ContextLoraModule

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # which its `max_lora_rank` may be

_TEXT = """\
---
base_model: {base}
library_name: {library}
tags:
- lora
- contextlora
---
# {task}

{what} for the task `{task}` of the task set {taskset}, trained with ContextLoRA, method `{method}`
([arXiv 2507.21199](https://arxiv.org/abs/2507.21199)). Unmodified {reader} loads it. The licence of the base holds for
the base; add the one that you give this {thing}.

- Base: `{base}`
- Rank {rank}, alpha {alpha:g}; for vLLM: `max_lora_rank={vllm}`
- Task graph: {graph}
- Context in the prompts: {context}

## Prompt

An example, {turn}:

```text
{prompt}
```

Its options: {options}. The right one: {answer}.

## Answer

Each option's score is the sum of the log-likelihoods of its tokens behind the prompt{normalised};
the answer is the option with the highest score. Where one option of an item begins another in tokens, every option ends
with {ending}.
{figures}"""

_ADAPTER = {"what": "A LoRA", "library": "peft", "reader": "PEFT", "thing": "adapter"}
_MERGED = {
    "what": "The base with a LoRA merged into its weights,",
    "library": "transformers",
    "reader": "transformers",
    "thing": "model",
}

_FIGURES = """
## Accuracy

{end_to_end:.1%} of {n} items of the run's evaluation split, end to end; the base without the adapter {zero_shot:.1%},
chance {chance:.1%}.
"""


def adapter_card(
    module: ContextLoraModule, task: str, base: str, figures: Mapping[str, float] | None = None, merged: bool = False
) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        module: the trained model.
        task: whose adapter it is.
        base: hub id or folder of its base.
        figures: the task's row of results.json; None where the run was not evaluated.
        merged: whether the card is of a checkpoint that the adapter was merged into.
    """
    data, use = module.data, module.uses[task]
    item = data.taskset.items(task, "train")[0]
    prompt = data.prompt(task, item, data.right_context(task, item))
    graph, config = data.taskset.graph, module.adapted.config
    rank = sum(module.adapted.partition.ranks[name] for name in use.active)
    edges = [f"{parent} -> {name}" for name in graph.tasks for parent in graph.prerequisites(name)]
    named = _MERGED if merged else _ADAPTER
    return _TEXT.format(
        **named,
        base=base,
        task=task,
        taskset=data.taskset.name,
        method=module.method.settings.name or type(module.method).__name__,
        rank=rank,
        alpha=config.scale * rank,
        vllm=next((size for size in _VLLM_RANKS if size >= rank), rank),
        graph=", ".join(edges) or "no edges",
        context="none"
        if data.context == "none"
        else "the answers to "
        + (", ".join(data.taskset.context_tasks(task, data.scope)) or "no task, as it has no prerequisites"),
        turn="the user's turn of the base's chat template" if data.backbone.chat_template else "as it is",
        prompt=prompt.text,
        options=", ".join(prompt.continuations),
        answer=prompt.continuations[prompt.answer],
        normalised=", divided by its characters" if data.length_normalised else "",
        ending=repr(data.backbone.tokenizer.eos_token or " ."),
        figures="" if figures is None else _FIGURES.format(**figures),
    )
