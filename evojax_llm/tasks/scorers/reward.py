"""reward: a Gemma sequence-classification model scores the responses.

The reward of (prompt, response) is the model's only logit at the last token of
the conversation, put through its chat template, or of the two texts one after
the other with `chat=False`.

`mode` mixes it with the length of the response, as Model Swarms does (arXiv
2410.11163). With r = clip((reward - low) / (high - low)) and
l = clip((tokens - 10) / (201 - 10)), both in [0, 1]:
  plain                   the reward itself
  default                 r
  verbose                 (r + l) / 2
  concise                 (r + 1 - l) / 2
  reverse                 1 - r
  reverse_as_published    -(r + min(tokens, 1)) / 2: a slip, the raw length is
                          clipped to 1 in place of being normalised first
low and high are by default the constants of the paper's reward model.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from absl import logging
import numpy as np

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

MODES = ('plain', 'default', 'verbose', 'concise', 'reverse')
MODES += ('reverse_as_published',)
_SHORT, _LONG = 10, 201


@dataclasses.dataclass(frozen=True)
class RewardModel(Scorer):
  """Mean reward of a classification model."""

  folder: str = option('', 'Gemma2ForSequenceClassification and tokenizer')
  mode: str = option('plain', 'how reward and length are mixed', choices=MODES)
  low: float = option(-3.06, 'reward that becomes 0')
  high: float = option(2.656, 'reward that becomes 1')
  chat: bool = option(True, 'whether texts go through the chat template')
  dtype: str = option(
    'float32', 'type of the model', choices=('float32', 'bfloat16')
  )
  rows: int = option(8, 'conversations at a time', low=1)

  metric = 'reward'
  binary = percent = gold = stop = False
  choices = None
  max_new_tokens = 200

  def __post_init__(self):
    super().__post_init__()
    if not self.folder:
      raise TaskError('folder: name the folder of the reward model.')
    if not self.low < self.high:
      raise TaskError(f'low={self.low} is not below high={self.high}.')

  def score(self, item: Item, answer: Answer) -> Verdict:
    return self.score_all([(item, answer)])[0]

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    if not pairs:
      return []
    tokenizer, model = _loaded(self.folder, self.dtype)
    asked, lengths = [], []
    for item, answer in pairs:
      asked.append(self._encode(tokenizer, item.question, answer.text))
      lengths.append(len(tokenizer.encode(answer.text, bos=False)))
    rewards = _rewards(model, asked, self.rows, tokenizer.pad_id).tolist()
    verdicts = []
    for (_, answer), *both in zip(pairs, rewards, lengths, strict=True):
      value = mixed(self.mode, *both, self.low, self.high)
      verdicts.append(Verdict(answer.text, value))
    return verdicts

  def _encode(self, tokenizer: Any, prompt: str, response: str) -> list[int]:
    if not self.chat:
      return tokenizer.encode(prompt + response, bos=True)
    turns = (('user', prompt), ('assistant', response))
    messages = [{'role': role, 'content': text} for role, text in turns]
    ids = tokenizer.encode_chat(messages, reply=False)
    bos = tokenizer.bos_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def mixed(
  mode: str, reward: float, tokens: int, low: float, high: float
) -> float:
  """Returns a reward mixed with the length of the response."""
  if mode == 'plain' or math.isnan(reward):
    return reward
  r = min(max((reward - low) / (high - low), 0.0), 1.0)
  length = min(max((tokens - _SHORT) / (_LONG - _SHORT), 0.0), 1.0)
  return {
    'default': r,
    'verbose': (r + length) / 2,
    'concise': (r + 1 - length) / 2,
    'reverse': 1 - r,
    'reverse_as_published': -(r + min(tokens, 1)) / 2,
  }[mode]


@functools.lru_cache(maxsize=2)
def _loaded(folder: str, dtype: str) -> tuple[Any, Any]:
  """Returns the tokenizer and the reward model of a folder, read once."""
  # Not at import: task files are checked before jax is loaded.
  from evojax_llm.models import classifier
  from evojax_llm.models.tokenizer import Tokenizer

  tokenizer = Tokenizer.from_folder(folder)
  model = classifier.load_classifier(folder, dtype)
  if model.labels != 1:
    raise TaskError(
      f'{folder}: {model.labels} labels; expected a reward model, which has '
      'one.'
    )
  return tokenizer, model


def _rewards(
  model: Any, asked: Sequence[Sequence[int]], at_once: int, pad_id: int
) -> np.ndarray:
  """Returns rewards f32 of token sequences, in their order."""
  longest = model.config.max_position_embeddings
  cut = sum(len(ids) > longest for ids in asked)
  if cut:
    logging.warning(
      '%d of %d conversations are longer than the %d tokens of the reward '
      'model and were cut from the left.',
      cut,
      len(asked),
      longest,
    )
  asked = [list(ids[-longest:]) for ids in asked]
  rewards = np.zeros(len(asked), np.float32)
  order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
  for start in range(0, len(order), at_once):
    chosen = order[start : start + at_once]
    # Few shapes: whole batches, and lengths in steps of 64.
    length = -(-len(asked[chosen[-1]]) // 64) * 64
    tokens = np.full((at_once, length), pad_id, np.int32)
    positions = np.full((at_once, length), -1, np.int32)
    for i, ids in enumerate(asked[index] for index in chosen):
      tokens[i, : len(ids)] = ids
      positions[i, : len(ids)] = np.arange(len(ids))
    positions[len(chosen) :, 0] = 0  # a row without any key has no result
    rewards[chosen] = model.logits(tokens, positions)[: len(chosen), 0]
  return rewards
