import dataclasses
import random

import pytest

from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.prompts import encode_items
from evojax_llm.tasks.prompts import encode_passes
from evojax_llm.tasks.prompts import write_prompt
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import load_task
from evojax_llm.tasks.tokens import encode_options
from evojax_llm.tasks.tokens import encode_prompt
from evojax_llm.tasks.tokens import truncate
from tests import tiny

ITEM = Item('0', 'the tin?', 'B', (('A', 'tea'), ('B', 'the inn')))
CHOICE = Task('choice', 'multiple_choice', (ITEM,))
PLAIN = Item('0', 'Say it.', 'it')
EXACT = Task('exact', 'exact_match', (PLAIN,))

RAW = """Please choose an option that best answers the question.
Question: the tin?
A: tea
B: the inn
The answer is"""


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tiny.write_tokenizer(folder)
  return Tokenizer.from_folder(folder)


def with_format(task, **options):
  return dataclasses.replace(task, format=Format(**options))


def text_of(tokenizer, ids):
  return tokenizer.decode(ids)


def test_default_prompts():
  assert write_prompt(CHOICE, ITEM) == RAW
  swag = dataclasses.replace(CHOICE, name='HellaSwag')
  assert write_prompt(swag, ITEM) == RAW.replace(
    'answers the question', 'completes the sentence'
  )
  assert write_prompt(EXACT, PLAIN) == 'Say it.'
  texts = with_format(CHOICE, choice='text')
  assert write_prompt(texts, ITEM) == 'Question: the tin?\nAnswer:'


def test_worked_examples_replace_the_instruction(data_folder):
  task = load_task(data_folder / 'knowledge_crosswords.json')
  text = write_prompt(task, task.dev[0])
  assert text.startswith(f'{task.icl_prompt}\nQuestion: Pick the correct')
  assert 'Please choose' not in text and text.endswith('\nThe answer is')
  shown = dataclasses.replace(EXACT, icl_prompt='Say x. x')
  assert write_prompt(shown, PLAIN) == 'Say x. x\nSay it.'


def test_templates_and_instructions():
  task = with_format(CHOICE, prompt='{{Q}} {question}|{choices}|')
  item = dataclasses.replace(ITEM, question='{choices}?')
  assert write_prompt(task, item) == '{Q} {choices}?|A: tea\nB: the inn|'
  task = with_format(CHOICE, instruction='Pick.')
  assert write_prompt(task, ITEM).startswith('Pick.\nQuestion:')
  task = with_format(CHOICE, instruction='')
  assert write_prompt(task, ITEM).startswith('Question:')


def test_options_follow_the_prompt(tokenizer):
  encoded = encode_passes(CHOICE, ITEM, tokenizer)[0]
  assert list(encoded.prompt) == tokenizer.encode(RAW)
  for (key, _), option in zip(ITEM.choices, encoded.options, strict=True):
    assert text_of(tokenizer, option) == f' {key}'
    assert list(encoded.prompt + option) == tokenizer.encode(f'{RAW} {key}')
  assert encoded.max_new_tokens == 0 and encoded.truncated == 0


def test_option_texts_are_scored(tokenizer):
  task = with_format(CHOICE, choice='text', prompt='{question}')
  encoded = encode_passes(task, ITEM, tokenizer)[0]
  texts = [text_of(tokenizer, option) for option in encoded.options]
  assert texts == [' tea', ' the inn']
  lines = with_format(CHOICE, choice='text', prompt='{question}\n')
  encoded = encode_passes(lines, ITEM, tokenizer)[0]
  texts = [text_of(tokenizer, option) for option in encoded.options]
  assert texts == ['tea', 'the inn']


def test_spaces_at_the_end_move_into_the_continuation(tokenizer):
  # The tokenizer joins a space and an 'a'; apart they would be two tokens.
  plain = encode_options('x is', [' a', ' b'], tokenizer)
  assert encode_options('x is ', [' a', ' b'], tokenizer) == plain
  prompt, options = plain
  assert prompt == tokenizer.encode('x is')
  assert [len(option) for option in options] == [1, 2]
  prompt, options = encode_options('x is  ', ['a'], tokenizer)
  assert prompt + options[0] == tokenizer.encode('x is  a')


def test_tokens_that_join_across_the_border(tokenizer):
  # 't' and 'he' make one token, so that the prompt of both options ends
  # before the 't', which both of them then begin with.
  prompt, options = encode_options('(t', ['he', 'o'], tokenizer)
  assert prompt == tokenizer.encode('(')
  assert [len(option) for option in options] == [1, 2]
  assert [text_of(tokenizer, option) for option in options] == ['the', 'to']


def test_prompt_and_option_are_the_joint_encoding(tokenizer):
  rng = random.Random(0)
  letters = 'thein ra\nx\u00e9.'
  for _ in range(300):
    text = ''.join(rng.choices(letters, k=rng.randrange(9)))
    options = [''.join(rng.choices(letters, k=3)) + '!' for _ in range(3)]
    prompt, ids = encode_options(text, options, tokenizer)
    moved = text.endswith(' ')
    for option, found in zip(options, ids, strict=True):
      option = option.removeprefix(' ') if moved else option
      assert found and prompt[0] == tokenizer.bos_id
      assert prompt + found == tokenizer.encode(text + option)


def test_generated_answers(tokenizer):
  task = with_format(EXACT, max_new_tokens=7, stop=('\n',))
  item = dataclasses.replace(PLAIN, question='Say it.  ')
  encoded = encode_passes(task, item, tokenizer)[0]
  assert list(encoded.prompt) == tokenizer.encode('Say it.')
  assert encoded.options is None
  assert (encoded.max_new_tokens, encoded.stop) == (7, ('\n',))


def test_an_empty_prompt_is_bos(tokenizer):
  empty = dataclasses.replace(PLAIN, question='')
  assert encode_passes(EXACT, empty, tokenizer)[0].prompt == (tokenizer.bos_id,)
  assert encode_prompt('', tokenizer) == [tokenizer.bos_id]
  prompt, options = encode_options('', ['a', 'b'], tokenizer)
  assert prompt == [tokenizer.bos_id] and len(options) == 2
  # Without a BOS an end stands there, and no other prompt gets one.
  bare = dataclasses.replace(tokenizer, bos_id=None)
  assert encode_prompt('', bare) == [tiny.EOS]
  assert encode_options('', ['a', 'b'], bare) == ([tiny.EOS], options)
  assert encode_prompt('a', bare) == encode_prompt('a', tokenizer)[1:]


def test_chat(tokenizer):
  encoded = encode_passes(CHOICE, ITEM, tokenizer, chat=True)[0]
  prompt = list(encoded.prompt)
  assert prompt.count(tokenizer.bos_id) == 1 and prompt[0] == tokenizer.bos_id
  assert prompt.count(tiny.START_OF_TURN) == 2
  text = text_of(tokenizer, prompt)
  assert 'Question: the tin?\nA: tea\nB: the inn' in text
  assert 'The answer is' not in text and text.endswith('model\n')
  options = [text_of(tokenizer, option) for option in encoded.options]
  assert options == ['A', 'B']
  encoded = encode_passes(EXACT, PLAIN, tokenizer, chat=True)[0]
  messages = [{'role': 'user', 'content': 'Say it.'}]
  assert list(encoded.prompt) == tokenizer.encode_chat(messages)


def test_bos_is_there_once_whatever_the_template_does(tokenizer):
  class Template:
    bos_id = tokenizer.bos_id

    def __init__(self, ids):
      self.ids = ids

    def encode_chat(self, messages):
      return self.ids

  for ids in ([9, 8], [2, 9, 8], [2, 2, 9, 8]):
    found = encode_prompt([{'role': 'user', 'content': 'x'}], Template(ids))
    assert found == [2, 9, 8]
  assert encode_prompt('<bos>ab', tokenizer) == tokenizer.encode('ab')


def test_long_prompts_are_cut_from_the_left(tokenizer):
  full = encode_passes(CHOICE, ITEM, tokenizer)[0]
  fits = len(full.prompt) + 2  # ' A' and ' B' take two tokens
  assert encode_passes(CHOICE, ITEM, tokenizer, max_length=fits)[0] == full
  cut = encode_passes(CHOICE, ITEM, tokenizer, max_length=fits - 5)[0]
  assert cut.truncated == 5 and cut.options == full.options
  assert cut.prompt == full.prompt[:1] + full.prompt[6:]
  task = with_format(EXACT, max_new_tokens=4)
  cut = encode_passes(task, PLAIN, tokenizer, max_length=7)[0]
  assert len(cut.prompt) + cut.max_new_tokens == 7
  assert text_of(tokenizer, cut.prompt) == 't.'
  with pytest.raises(TaskError, match='max_new_tokens takes 4 tokens'):
    encode_passes(task, PLAIN, tokenizer, max_length=4)[0]
  assert truncate([2, 5, 6], 3, 2) == ([2, 5, 6], 0)
  assert truncate([2, 5, 6], 1, 2) == ([2], 2)
  # Without a BOS, or behind one that was cut off, the last tokens stay.
  assert (
    truncate([4, 5, 6], 2, None) == truncate([4, 5, 6], 2, 2) == ([5, 6], 1)
  )


def test_cuts_are_counted_and_logged(tokenizer, caplog):
  encoded = encode_items(CHOICE, [ITEM, ITEM], tokenizer, max_length=40)
  assert all(entry.truncated for entry in encoded)
  assert "'choice': 2 of 2 prompts are longer" in caplog.text
  caplog.clear()
  encode_items(CHOICE, [ITEM], tokenizer)
  assert not caplog.text


def test_published_items_encode(data_folder, tokenizer):
  for name in ('truthfulqa', 'arc_challenge', 'gsm8k'):
    task = load_task(data_folder / f'{name}.json')
    for item in task.subset('dev', 20):
      for chat in (False, True):
        encoded = encode_passes(task, item, tokenizer, chat=chat)[0]
        assert encoded.prompt[0] == tokenizer.bos_id
        options = encoded.options or ()
        assert len(options) == len(item.choices or ())
        assert len(set(options)) == len(options)


@pytest.mark.parametrize('length', [None, 200, 2, 7, 8])
def test_a_long_text_is_read_in_windows(tokenizer, length):
  item = Item('0', '', 'the inn at noon and the tin')
  task = Task('t', 'perplexity', (item,))
  ids = tokenizer.encode(item.answer, bos=False)
  windows = encode_passes(task, item, tokenizer, max_length=length)
  assert windows[0].prompt == (tokenizer.bos_id,)
  read = [token for window in windows for token in window.options[0]]
  assert read == ids
  if length in (None, 200):
    assert len(windows) == 1
    return
  end = 0
  for window in windows:
    (option,) = window.options
    assert len(window.prompt) + len(option) == length or not end
    # What stands before a window is the text before it.
    if end:
      assert list(window.prompt) == ids[end - len(window.prompt) : end]
    end += len(option)
    assert not window.truncated
  assert len(encode_items(task, (item,), tokenizer, max_length=length)) == len(
    windows
  )


def test_a_text_without_tokens_is_refused(tokenizer):
  item = Item('0', '', '')
  with pytest.raises(TaskError, match='no tokens'):
    encode_passes(Task('t', 'perplexity', (item,)), item, tokenizer)
