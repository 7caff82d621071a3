"""Stop strings on decoded text."""

import pytest

from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import stop_strings as stops_lib


def decode(ids):
  """Tokens of one byte each."""
  return bytes(ids).decode(errors='replace')


@pytest.mark.parametrize(
  ('text', 'stops', 'kept'),
  [
    ('abcdef', ('cd',), 'abcd'),
    ('abcdef', ('x', 'b'), 'ab'),
    ('abcdef', ('x',), 'abcdef'),
    ('aé\nb', ('\n',), 'aé\n'),
    ('añoé!', ('é',), 'añoé'),
    ('日本語。次', ('。',), '日本語。'),
    ('\n\n', ('\n\n',), '\n\n'),
    ('', ('a',), ''),
    ('abc', ('',), 'abc'),
  ],
)
def test_cut(text, stops, kept):
  ids = list(text.encode())
  assert decode(stops_lib.cut_ids(ids, stops, decode)) == kept
  # Whatever else was made before anyone looked.
  late = stops_lib.cut_ids([*ids, *b' and so on'], stops, decode)
  if kept != text or stops_lib.has_stop(text, stops):
    assert decode(late) == kept


def test_a_stop_string_across_tokens(tiny_gemma_folder):
  tokenizer = Tokenizer.from_folder(tiny_gemma_folder('gemma2'))
  ids = tokenizer.encode('the inn\nQ: é', bos=False)
  cut = stops_lib.cut_ids(ids, ('n\nQ',), tokenizer.decode)
  assert tokenizer.decode(cut) == 'the inn\nQ'
  cut = stops_lib.cut_ids(ids, ('é',), tokenizer.decode)
  assert list(cut) == ids  # its two bytes are two tokens.


def test_recent_tokens_hold_what_can_have_ended():
  ids = list(b'x' * 500 + 'é stop'.encode())
  late = stops_lib.recent(ids, 3, ('é stop',))
  assert stops_lib.has_stop(decode(late), ('é stop',)) and len(late) < 30
