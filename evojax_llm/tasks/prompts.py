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
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import logging

from evojax_llm.models.errors import ModelError
from evojax_llm.models.image_tokens import reader
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.tokens import encode_options
from evojax_llm.tasks.tokens import encode_prompt
from evojax_llm.tasks.tokens import truncate

_INSTRUCTION = 'Please choose an option that best answers the question.'
_COMPLETION = 'Please choose an option that best completes the sentence.'
_CHAT_REPLY = ' Reply with the letter of the option alone.'


@dataclasses.dataclass(frozen=True)
class EncodedItem:
  """An item as token ids.

  Attributes:
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
  """Returns the text that is read about an item, before any chat template.

  With `chat` the prompt asks for a reply, and does not end in the middle of a
  sentence; system text and shots are other turns.
  """
  blocks = []
  for shot in () if chat else task.shots:
    stem = _block(task, shot).rstrip(' ')
    blocks.append(stem + _parted([shown_answer(task, shot)], stem)[0])
  text = '\n\n'.join([*blocks, _block(task, item, chat)])
  text = _instruction(task, item, chat) + text
  text = f'{task.icl_prompt}\n{text}' if task.icl_prompt else text
  return text if chat and task.shots else _after_system(task, text)


def _after_system(task: Task, text: str) -> str:
  return f'{task.format.system}\n\n{text}' if task.format.system else text


def write_messages(task: Task, item: Item) -> list[dict[str, str]]:
  """Returns the turns of a conversation that ends with an item's question."""
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
  """Returns a gold answer as a shot shows it: the key, or the text."""
  if item.choices is not None and task.format.choice == 'text':
    return dict(item.choices)[item.answer]
  return item.answer


def _reads_texts(task: Task) -> bool:
  """Whether the texts of options are scored, which the prompt does not show."""
  return task.format.choice == 'text' and scorer_of(task).reads == 'options'


def _block(task: Task, item: Item, chat: bool = False) -> str:
  """The question of an item up to where its answer begins."""
  choices = '\n'.join(f'{key}: {text}' for key, text in item.choices or ())
  if task.format.prompt is not None:
    return task.format.prompt.format(question=item.question, choices=choices)
  if item.choices is None:
    return item.question
  if _reads_texts(task):
    return f'Question: {item.question}' + ('' if chat else '\nAnswer:')
  ending = '' if chat else '\nThe answer is'
  return f'Question: {item.question}\n{choices}{ending}'


def _instruction(task: Task, item: Item, chat: bool) -> str:
  """The line above a multiple-choice question, with its line end, or ''."""
  templated = item.choices is None or task.format.prompt is not None
  if templated or _reads_texts(task):
    return ''
  text = task.format.instruction
  if text is None:
    if task.icl_prompt:
      return ''
    # Sentences to be continued, and not questions.
    completes = task.name.lower() == 'hellaswag'
    text = _COMPLETION if completes else _INSTRUCTION
    text += _CHAT_REPLY if chat else ''
  return f'{text}\n' if text else ''


def _parted(texts: Sequence[str], prompt: str) -> list[str]:
  """Returns continuations with the space that parts them from a prompt."""
  # Nothing parts an option from a line's start or an opening bracket.
  close = not prompt or prompt[-1] in '\n\t([{"'
  return [text if close else f' {text}' for text in texts]


def reader_of(task: Task, item: Item, tokenizer: Tokenizer) -> Any:
  """Returns what encodes texts about an item: its images have their places."""
  images = [image for shown in (*task.shots, item) for image in shown.images]
  return reader(tokenizer, images)


def encode_passes(
  task: Task,
  item: Item,
  tokenizer: Tokenizer,
  chat: bool = False,
  max_length: int | None = None,
) -> list[EncodedItem]:
  """Encodes all that is asked about an item; an empty prompt is BOS alone.

  With `chat` prompts go through the tokenizer's chat template. Prompt and
  continuation have `max_length` tokens together at most: a longer prompt is cut
  from the left, which `truncated` tells.

  Raises:
    TaskError: a continuation alone does not fit in `max_length`.
  """
  scorer, tokenizer = scorer_of(task), reader_of(task, item, tokenizer)
  if scorer.rolls and not item.question:
    return [
      _fitted(task, item, prompt, [window], 0)
      for prompt, window in _windows(item.answer, tokenizer, max_length)
    ]
  generates = scorer.reads == 'text'
  # Prompt as text, its turns in a chat, and what is read after it.
  asked: list[tuple[str, list | None, Sequence[str] | None]] = []
  requests = scorer.requests(item)
  if requests is None:
    text = write_prompt(task, item, chat)
    starts = None
    if not generates:
      letters = task.format.choice == 'letter'
      texts = [c[0 if letters else 1] for c in item.choices or ()]
      texts = [item.answer] if scorer.reads == 'gold' else texts
      starts = _parted(texts, '' if chat else text)
    asked.append((text, write_messages(task, item) if chat else None, starts))
  for text, starts in requests or ():
    turns = _turn(text) if chat and text else None
    starts = [start.lstrip() for start in starts] if turns else starts
    asked.append((text, turns, starts))
  for text, replies in scorer.second_pass(item):
    starts = None if generates else _parted(replies, '' if chat else text)
    asked.append((text, _turn(text) if chat else None, starts))
  passes = []
  for text, turns, starts in asked:
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
    passes.append(
      _fitted(task, item, prompt, options, new, max_length, tokenizer.bos_id)
    )
  return passes


def _windows(
  text: str, tokenizer: Tokenizer, max_length: int | None
) -> Iterator[tuple[list[int], list[int]]]:
  """Yields (prompt, window) over a text in windows of `max_length` tokens."""
  ids = tokenizer.encode(text, bos=False)
  most = max(1, (max_length or len(ids) + 1) - 1)
  # An empty text has one window, which is refused.
  for start in range(0, max(1, len(ids)), most):
    window = ids[start : start + most]
    before = ids[max(0, start + len(window) - most - 1) : start]
    yield before or encode_prompt('', tokenizer), window


def _fitted(
  task: Task,
  item: Item,
  prompt: list[int],
  options: list[list[int]] | None,
  new: int,
  max_length: int | None = None,
  bos_id: int | None = None,
) -> EncodedItem:
  """Returns token ids as they are read, the prompt cut where it is too long."""
  where = f"Task '{task.name}', item '{item.id}'"
  if options is not None and not all(options):
    raise TaskError(
      f'{where}: an option has no tokens of its own, so that it cannot be '
      'scored.'
    )
  truncated = 0
  if max_length is not None:
    if not task.format.limited:  # A default leaves half to the prompt.
      new = min(new, max(1, max_length // 2))
    longest = max(map(len, options)) if options else new
    room = max_length - longest
    if room < 1:
      what = 'max_new_tokens' if options is None else 'its longest option'
      raise TaskError(
        f'{where}: {what} takes {longest} tokens, which leaves no room for a '
        f'prompt within {max_length}. Raise the length limit, or lower '
        'max_new_tokens in the task\'s "format".'
      )
    prompt, truncated = truncate(prompt, room, bos_id)
    if truncated and any(i.images for i in (*task.shots, item)):
      raise TaskError(
        f'{where}: a prompt with images has {len(prompt) + truncated} tokens, '
        f'{longest} more follow, and there is room for {max_length}; images '
        'are not cut. Raise the length limit, or show fewer.'
      )
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

  An item about which more than one thing is asked gives as many entries.
  """
  encoded = []
  for item in items:
    try:
      encoded += encode_passes(task, item, tokenizer, chat, max_length)
    except ModelError as error:
      where = f"Task '{task.name}', item '{item.id}'"
      raise TaskError(f'{where}: {error}') from error
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
  return tuple(encoded)
