"""Items as token ids: what the model reads, and what is scored after it.

Default prompts, raw (no chat template):
  multiple choice, letters   as Model Swarms (arXiv 2410.11163): an instruction
                             line, 'Question: ...', a line 'A: ...' per option,
                             'The answer is'; the options are ' A', ' B', ...
  multiple choice, texts     'Question: ...', 'Answer:'; the options are their
                             texts.
  all other kinds            the question as it is; of a kind that generates and
                             has options, the multiple-choice prompt above.
Before it come, in this order, the system text, the task's own worked examples
(icl_prompt, which then replace the instruction line), and the task's shots:
items with their answers, a blank line apart, the instruction once above them.
With chat=True each shot is a turn of the user and one of the model, the system
text opens the first turn (Gemma's template has no role for it), and the options
begin the model's turn.

Shots are dev items, chosen by a seed when the task is read; dev no longer holds
them or a copy of them, and none of them is in test. What is scored has thus
never been shown with its answer.

The border between prompt and continuation follows lm-evaluation-harness:
spaces at the end of the prompt belong to the continuation, and the two are
encoded together, since a tokenizer may join characters across the border. The
continuation is what follows the encoding of the prompt alone. Where an option
changes the last tokens of the prompt, the prompt of all the item's options
ends before these tokens, which become part of every option: the options still
continue the same prompt, and their likelihoods compare.
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol

from absl import logging

from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.scorers import abstain
from evojax_llm.fitness.scorers.table import scorer_of

_INSTRUCTION = 'Please choose an option that best answers the question.'
_COMPLETION = 'Please choose an option that best completes the sentence.'
_CHAT_REPLY = ' Reply with the letter of the option alone.'
# Sentences to be continued, not questions.
_COMPLETION_TASKS = ('hellaswag',)


class Tokenizer(Protocol):
  """What is needed of evojax_llm.gemma.tokenizer.Tokenizer."""

  bos_id: int | None

  def encode(self, text: str, bos: bool = True) -> list[int]:
    """Token ids of a text."""

  def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, up to the start of the model's turn."""


@dataclasses.dataclass(frozen=True)
class EncodedItem:
  """An item as token ids.

  Attributes:
    item: the item.
    prompt: ids that the model reads, first of them BOS.
    options: ids of each option that continue the prompt, in the order of
      `item.choices`; None where the answer is generated.
    max_new_tokens: tokens to decode at most; 0 where the options are scored.
    stop: strings that end the answer.
    truncated: tokens cut from the left of the prompt (after BOS) to fit.
  """

  item: Item
  prompt: tuple[int, ...]
  options: tuple[tuple[int, ...], ...] | None
  max_new_tokens: int
  stop: tuple[str, ...]
  truncated: int = 0


def write_prompt(task: Task, item: Item, chat: bool = False) -> str:
  """The text that an item's model reads, before any chat template.

  Args:
    task: gives the template, the instruction and the worked examples.
    item: one of its items.
    chat: for the chat template: the prompt asks for a reply, and does not end
      in the middle of a sentence; system text and shots are other turns.

  Returns:
    The text.
  """
  head = _instruction(task, item, chat)
  if chat:
    text = head + _block(task, item, chat)
    text = f'{task.icl_prompt}\n{text}' if task.icl_prompt else text
    return text if task.shots else _after_system(task, text)
  blocks = [
    _joined(_block(task, shot), shown_answer(task, shot)) for shot in task.shots
  ]
  text = head + '\n\n'.join([*blocks, _block(task, item)])
  text = f'{task.icl_prompt}\n{text}' if task.icl_prompt else text
  return _after_system(task, text)


def _after_system(task: Task, text: str) -> str:
  return f'{task.format.system}\n\n{text}' if task.format.system else text


def write_messages(task: Task, item: Item) -> list[dict[str, str]]:
  """The turns of a conversation that ends with the item's question."""
  messages = []
  for shot in task.shots:
    question = _instruction(task, shot, True) + _block(task, shot, True)
    messages += _turn(question)
    messages.append({'role': 'assistant', 'content': shown_answer(task, shot)})
  messages += _turn(write_prompt(task, item, chat=True))
  if task.shots:
    messages[0] = _turn(_after_system(task, messages[0]['content']))[0]
  return messages


def shown_answer(task: Task, item: Item) -> str:
  """A gold answer as a shot shows it: the key, text or answer to be given."""
  if item.choices is not None and task.format.choice == 'text':
    return dict(item.choices)[item.answer]
  return item.answer


def _joined(prompt: str, answer: str) -> str:
  """A prompt and what follows it, a space between where one belongs."""
  stem = prompt.rstrip(' ')
  return stem + _parted([answer], stem)[0]


def _block(task: Task, item: Item, chat: bool = False) -> str:
  """The question of an item up to where its answer begins."""
  choices = '\n'.join(f'{key}: {text}' for key, text in item.choices or ())
  if task.format.prompt is not None:
    return task.format.prompt.format(question=item.question, choices=choices)
  if item.choices is None:
    return item.question
  if task.format.choice == 'text' and scorer_of(task).reads == 'options':
    return f'Question: {item.question}' + ('' if chat else '\nAnswer:')
  ending = '' if chat else '\nThe answer is'
  return f'Question: {item.question}\n{choices}{ending}'


def _instruction(task: Task, item: Item, chat: bool) -> str:
  """The line above a multiple-choice question, with its line end, or ''."""
  if item.choices is None or task.format.prompt is not None:
    return ''
  if task.format.choice == 'text' and scorer_of(task).reads == 'options':
    return ''
  text = task.format.instruction
  if text is None:
    if task.icl_prompt:
      return ''
    completes = task.name.lower() in _COMPLETION_TASKS
    text = _COMPLETION if completes else _INSTRUCTION
    text += _CHAT_REPLY if chat else ''
  return f'{text}\n' if text else ''


def encode_prompt(
  prompt: str | Sequence[dict[str, str]], tokenizer: Tokenizer
) -> list[int]:
  """Token ids of a text, or of a list of chat messages, with one BOS."""
  if isinstance(prompt, str):
    return _one_bos(tokenizer.encode(prompt, bos=True), tokenizer)
  return _one_bos(tokenizer.encode_chat(list(prompt)), tokenizer)


def _one_bos(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
  """Ids that begin with exactly one BOS, whatever a template has written."""
  if tokenizer.bos_id is None:
    return list(ids)
  start = 0
  while start < len(ids) and ids[start] == tokenizer.bos_id:
    start += 1
  return [tokenizer.bos_id, *ids[start:]]


def truncate(ids: Sequence[int], room: int) -> tuple[list[int], int]:
  """Cuts a prompt from the left, but for its BOS.

  Args:
    ids: the prompt, BOS first.
    room: ids that may stay, at least 1.

  Returns:
    (ids, number of ids cut).
  """
  cut = max(0, len(ids) - room)
  return [ids[0], *ids[1 + cut :]], cut


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
  length = 0
  for a, b in zip(first, second, strict=False):
    if a != b:
      break
    length += 1
  return length


def encode_options(
  prompt: str, options: Sequence[str], tokenizer: Tokenizer
) -> tuple[list[int], list[list[int]]]:
  """A prompt and its continuations, tokenised right at the border.

  Args:
    prompt: text; spaces at its end move into the continuations.
    options: texts that continue it; each begins with the space that parts it
      from the prompt, if there is one.
    tokenizer: encodes text.

  Returns:
    (ids of the prompt, ids of each option), such that prompt + option is the
    encoding of the joined text.
  """
  stem = prompt.rstrip(' ')
  moved = prompt[len(stem) :]
  if moved:  # one space parts the two, not two
    options = [moved + option.removeprefix(' ') for option in options]
  ids = encode_prompt(stem, tokenizer)
  joint = [encode_prompt(stem + option, tokenizer) for option in options]
  shared = min([len(ids)] + [_common_prefix(ids, whole) for whole in joint])
  return ids[:shared], [whole[shared:] for whole in joint]


def _continuations(task: Task, item: Item, prompt: str) -> list[str]:
  """What is read after the raw prompt: the options, or the gold answer."""
  if scorer_of(task).reads == 'gold':
    texts = [item.answer]
  else:
    letters = task.format.choice == 'letter'
    texts = [key if letters else text for key, text in item.choices]
  return _parted(texts, prompt)


def _parted(texts: Sequence[str], prompt: str) -> list[str]:
  """Continuations with the space that parts them from the prompt."""
  # Nothing parts an option from a line's start or an opening bracket.
  close = not prompt or prompt[-1] in '\n\t([{"'
  return [text if close else f' {text}' for text in texts]


def encode_item(
  task: Task,
  item: Item,
  tokenizer: Tokenizer,
  chat: bool = False,
  max_length: int | None = None,
) -> EncodedItem:
  """Encodes an item of a task.

  Args:
    task: gives the prompt and the way to answer.
    item: one of its items.
    tokenizer: of the model.
    chat: put the prompt through the tokenizer's chat template.
    max_length: tokens that prompt and continuation may have together; a longer
      prompt is cut from the left, which `truncated` tells.

  Returns:
    The encoded item; an empty prompt is BOS alone.

  Raises:
    TaskError: the continuation alone does not fit in `max_length`.
  """
  text = write_prompt(task, item, chat)
  turns = write_messages(task, item) if chat else None
  starts = None
  if scorer_of(task).reads != 'text':
    starts = _continuations(task, item, '' if chat else text)
  return _encode(task, item, text, turns, starts, tokenizer, max_length)


def encode_passes(
  task: Task,
  item: Item,
  tokenizer: Tokenizer,
  chat: bool = False,
  max_length: int | None = None,
) -> list[EncodedItem]:
  """An item as all that is asked about it; see `encode_item`."""
  first = encode_item(task, item, tokenizer, chat, max_length)
  scorer = scorer_of(task)
  if not hasattr(scorer, 'second_prompts'):
    return [first]
  passes = [first]
  for text in scorer.second_prompts(item):
    turns = _turn(text) if chat else None
    starts = None
    if scorer.reads != 'text':
      starts = _parted(abstain.REPLIES, '' if chat else text)
    passes.append(
      _encode(task, item, text, turns, starts, tokenizer, max_length)
    )
  return passes


def _encode(
  task: Task,
  item: Item,
  text: str,
  turns: list[dict[str, str]] | None,
  starts: list[str] | None,
  tokenizer: Tokenizer,
  max_length: int | None,
) -> EncodedItem:
  """Encodes a prompt, as text or turns, and what is read after it."""
  options, new = None, 0
  if starts is None:
    # A space at the end would be its own token, where the model expects to
    # begin the next word with it.
    prompt = encode_prompt(turns or text.rstrip(' '), tokenizer)
    new = task.format.max_new_tokens
  elif turns:
    # The template ends with a special token or a line's end, which joins with
    # nothing that follows.
    prompt = encode_prompt(turns, tokenizer)
    options = [tokenizer.encode(start, bos=False) for start in starts]
  else:
    prompt, options = encode_options(text, starts, tokenizer)
  if options is not None and not all(options):
    raise TaskError(
      f"Task '{task.name}', item '{item.id}': an option has no tokens of its "
      'own, so that it cannot be scored.'
    )
  truncated = 0
  if max_length is not None:
    longest = max(map(len, options)) if options else new
    room = max_length - longest
    if room < 1:
      what = 'max_new_tokens' if options is None else 'its longest option'
      raise TaskError(
        f"Task '{task.name}', item '{item.id}': {what} takes {longest} tokens, "
        f'which leaves no room for a prompt within {max_length}. Raise the '
        'length limit, or lower max_new_tokens in the task\'s "format".'
      )
    prompt, truncated = truncate(prompt, room)
  return EncodedItem(
    item=item,
    prompt=tuple(prompt),
    options=None if options is None else tuple(map(tuple, options)),
    max_new_tokens=new,
    stop=task.format.stop,
    truncated=truncated,
  )


def _turn(text: str) -> list[dict[str, str]]:
  return [{'role': 'user', 'content': text}]


def encode_items(
  task: Task,
  items: Sequence[Item],
  tokenizer: Tokenizer,
  chat: bool = False,
  max_length: int | None = None,
) -> tuple[EncodedItem, ...]:
  """Encodes items, and logs how many prompts had to be cut, if any.

  An item about which more than one thing is asked gives as many entries, one
  after the other.
  """
  encoded = tuple(
    encoded
    for item in items
    for encoded in encode_passes(task, item, tokenizer, chat, max_length)
  )
  cut = [entry.truncated for entry in encoded if entry.truncated]
  if cut:
    logging.warning(
      "Task '%s': %d of %d prompts are longer than the context of %d tokens "
      'and were cut from the left, by up to %d tokens.',
      task.name,
      len(cut),
      len(encoded),
      max_length,
      max(cut),
    )
  return encoded
