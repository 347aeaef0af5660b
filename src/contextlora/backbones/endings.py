"""The end of an answer, where options need one to be told apart."""

from itertools import permutations

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import Backbone
from contextlora.errors import tail
from contextlora.tasks.faults import label, shown
from contextlora.tasks.prompts import END_OF_ANSWER, Prompt


def ended(backbone: Backbone, prompt: Prompt, options: list[list[int]]) -> list[list[int]]:
    """The options with an end of answer behind each, where one begins another: alone it could never score less."""
    if _beginning(options) is None:
        return options
    tokenizer, end = backbone.tokenizer, backbone.tokenizer.eos_token_id
    if end is not None and end >= backbone.model.get_input_embeddings().weight.shape[0]:
        end = None  # some tokenizers bring one that the model was never given
    ending = tokenizer(END_OF_ANSWER, add_special_tokens=False)["input_ids"] if end is None else [end]
    ended = [option + ending for option in options]
    if pair := _beginning(ended):
        first, second = (prompt.continuations[place] for place in pair)
        raise BackboneError(
            f"no option may begin another one and its end of answer: in task {label(prompt.task)}, for the tokenizer "
            f"of model {tail(backbone.name)}, {shown(first)} begins {shown(second)}; rename one or set "
            "taskset.answer_format=letter"
        )
    return ended


def _beginning(options: list[list[int]]) -> tuple[int, int] | None:
    """The places of an option and of another one that begins with all its tokens; None where there is no such pair."""
    if max(map(len, options)) == 1:
        return None
    pairs = permutations(range(len(options)), 2)
    return next(((i, j) for i, j in pairs if options[j][: len(options[i])] == options[i]), None)
