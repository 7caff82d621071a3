"""Prompts and their continuations as token ids.

The border between prompt and continuation follows lm-evaluation-harness:
spaces at the end of the prompt belong to the continuation, and the two are
encoded together, since a tokenizer may join characters across the border. The
continuation is what follows the encoding of the prompt alone. Where an option
changes the last tokens of the prompt, the prompt of all the item's options
ends before these tokens, which become part of every option: the options still
continue the same prompt, and their likelihoods compare.
"""

from collections.abc import Sequence
import itertools

from evojax_llm.models.tokenizer import Tokenizer

Prompt = str | Sequence[dict[str, str]]  # text, or the messages of a chat


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
  """Returns token ids of a text, or of chat messages, with one BOS.

  Without a BOS an empty prompt is an end, as in lm-evaluation-harness: there is
  something that the first token follows.
  """
  return _encode(prompt, tokenizer) or list(tokenizer.stop_ids[:1])


def _encode(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
  """Returns ids that begin with one BOS, whatever a template wrote."""
  if isinstance(prompt, str):
    ids = tokenizer.encode(prompt, bos=True)
  else:
    ids = tokenizer.encode_chat(list(prompt))
  if tokenizer.bos_id is None:
    return list(ids)
  rest = itertools.dropwhile(lambda i: i == tokenizer.bos_id, ids)
  return [tokenizer.bos_id, *rest]


def truncate(
  ids: Sequence[int], room: int, bos_id: int | None
) -> tuple[list[int], int]:
  """Cuts a prompt from the left to `room` ids, but for a BOS at its beginning.

  Returns:
    (ids, number of ids cut).
  """
  cut = max(0, len(ids) - room)
  first = list(ids[:1]) if bos_id is not None and ids[:1] == [bos_id] else []
  return [*first, *ids[len(first) + cut :]], cut


def encode_options(
  prompt: str, options: Sequence[str], tokenizer: Tokenizer
) -> tuple[list[int], list[list[int]]]:
  """Tokenises a prompt and its continuations right at the border.

  Spaces at the prompt's end move into the continuations, each of which begins
  with the space that parts it from the prompt, if there is one.

  Returns:
    (ids of the prompt, ids of each option), such that prompt + option is the
    encoding of the joined text.
  """
  stem = prompt.rstrip(' ')
  moved = prompt[len(stem) :]
  if moved:  # one space parts the two, not two
    options = [moved + option.removeprefix(' ') for option in options]
  ids = _encode(stem, tokenizer)
  joint = [_encode(stem + option, tokenizer) for option in options]
  shared = common_start([ids, *joint])
  start = ids[:shared] or encode_prompt('', tokenizer)
  return start, [whole[shared:] for whole in joint]


def common_start(texts: Sequence[Sequence[int]]) -> int:
  """Returns how many ids all texts begin with alike."""
  # Of all texts, the first and the last in order have the least in common.
  first, last = min(texts), max(texts)
  length = 0
  for a, b in zip(first, last, strict=False):
    if a != b:
      break
    length += 1
  return length
