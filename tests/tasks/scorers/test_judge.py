"""Judges: a function, and a server on this machine that also fails."""

import contextlib
import http.server
import json
import socket
import threading
import time

import numpy as np
import pytest

from evojax_llm.tasks.scorers import judge as judge_lib
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.judge import Judge
from evojax_llm.tasks.scorers.judge import JudgeError
from evojax_llm.tasks.scorers.judge import rating
from evojax_llm.tasks.task import TaskError
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import text_item


def lengths(prompts, responses):
  """A judge of a user's."""
  return [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]


class Server:
  """An OpenAI-compatible server; `answers` makes (status, body)."""

  def __init__(self, answers):
    self.requests, self.answers = [], answers
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        outer.requests.append((self.path, dict(self.headers), body))
        status, reply, *fault = outer.answers(body, len(outer.requests))
        reply = (
          reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        )
        if 'hangs' in fault:
          time.sleep(0.3)
        if 'resets' in fault:
          self.connection.shutdown(socket.SHUT_RDWR)
          return
        self.send_response(status)
        size = len(reply) + 9 * ('breaks' in fault)
        self.send_header('Content-Length', str(size))
        if 'waits' in fault:
          self.send_header('Retry-After', '1')
        self.end_headers()
        # Who has waited long enough is gone.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
          for part in reply.split() if 'drips' in fault else [reply]:
            self.wfile.write(part)
            time.sleep(0.05 * ('drips' in fault))

      def log_message(self, *_):
        pass

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://localhost:{self._server.server_address[1]}/v1'
    self._thread = threading.Thread(
      target=self._server.serve_forever, args=(0.01,)
    )
    self._thread.start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()


@pytest.fixture
def serve():
  """serve(answers) -> Server, closed at the end."""
  servers = []

  def start(answers):
    servers.append(Server(answers))
    return servers[-1]

  yield start
  for server in servers:
    server.close()


def said(text):
  return 200, {'choices': [{'message': {'content': text}}]}


def ask(url, **options):
  options = {'wait': 0.01, 'retries': 2, **options}
  return Judge(endpoint=url, model='m', **options)


def test_a_function_is_asked_once_about_all():
  scorer = Judge(function=f'{__name__}:lengths')
  pairs = [(text_item(''), Answer((text,))) for text in ('a', 'bcd')]
  assert [v.value for v in scorer.score_all(pairs)] == [2, 4]
  assert judge(Judge(function=lengths), text_item(''), 'xy') == ('xy', 3)
  assert scorer.score_all([]) == []


@pytest.mark.parametrize(
  'function',
  [
    lambda prompts, responses: [1.0],
    lambda prompts, responses: [float('nan')] * len(prompts),
    lambda prompts, responses: 1 / 0,
    lambda prompts, responses: ['good'] * len(prompts),
  ],
  ids=['too few', 'nan', 'raises', 'words'],
)
def test_a_function_that_fails_is_no_score(function):
  pairs = [(text_item(''), Answer((text,))) for text in 'ab']
  with pytest.raises(JudgeError, match='The judge'):
    Judge(function=function).score_all(pairs)


def test_an_endpoint_rates(serve, monkeypatch):
  monkeypatch.setenv('A_KEY', 'secret')

  def rate(body, _):
    prompt = body['messages'][0]['content']
    return said('Rating: 7.5' if 'good' in prompt else '2')

  server = serve(rate)
  scorer = ask(server.url, key='A_KEY')
  pairs = [
    (text_item('', question='Say {x}'), Answer((t,))) for t in ('good', 'bad')
  ]
  assert [v.value for v in scorer.score_all(pairs)] == [7.5, 2]
  path, headers, body = server.requests[0]
  assert path == '/v1/chat/completions' and body['model'] == 'm'
  assert headers['Authorization'] == 'Bearer secret'
  assert body['temperature'] == 0
  assert 'Say {x}' in body['messages'][0]['content']


def test_failures_that_pass_are_tried_again(serve):
  answers = {1: (503, b''), 2: (200, b'no json'), 3: said('4')}
  server = serve(lambda _, count: answers[count])
  assert judge(ask(server.url), text_item(''), 'x')[1] == 4
  assert len(server.requests) == 3


@pytest.mark.parametrize(
  'fault',
  [
    (200, b'', 'hangs'),
    (200, b'', 'resets'),
    (200, b'{"choices": [', 'breaks'),
    # Each read ends in time, all of them together do not.
    (200, b'{ "a": ' + b' 1' * 20, 'drips'),
    (200, b' ' * 2000 + json.dumps(said('9')[1]).encode(), 'floods'),
    (200, b''),
    (200, b'<html>busy</html>'),
    (200, {'error': 'loading'}),
    (200, {'choices': []}),
    (200, {'choices': [{'message': {'content': None}}]}),
    (429, b''),
    (502, b''),
  ],
  ids=lambda fault: f'{fault[0]} {fault[-1]}',
)
def test_whatever_breaks_is_tried_again(serve, fault, monkeypatch):
  monkeypatch.setattr(judge_lib, '_LONGEST_REPLY', 1000)
  # Short where the reply is a fault; a good one may be slow on a busy machine.
  fetched, seconds = judge_lib._fetched, iter((0.2, 60, 0.2, 0.2))
  monkeypatch.setattr(
    judge_lib, '_fetched', lambda request, _: fetched(request, next(seconds))
  )
  server = serve(lambda _, count: fault if count == 1 else said('4'))
  assert judge(ask(server.url), text_item(''), 'x')[1] == 4
  assert len(server.requests) == 2
  always = serve(lambda *_: fault)
  with pytest.raises(JudgeError, match='gave no reply in 2 tries.*No score'):
    judge(ask(always.url, retries=1), text_item(''), 'x')


def test_a_server_says_how_long_to_wait(serve):
  server = serve(lambda _, n: (429, b'', 'waits') if n == 1 else said('4'))
  start = time.monotonic()
  assert judge(ask(server.url), text_item(''), 'x')[1] == 4
  assert time.monotonic() - start >= 1


def test_what_was_replied_before_the_end_is_kept(serve, tmp_path):
  def answers(body, _):
    return (500, b'') if 'bad' in str(body) else said('4')

  server = serve(answers)
  cache = tmp_path / 'replies.jsonl'
  scorer = ask(server.url, cache=str(cache), workers=1, retries=0)
  pairs = [(text_item(''), Answer((t,))) for t in ('one', 'two', 'bad', 'end')]
  with pytest.raises(JudgeError):
    scorer.score_all(pairs)
  assert len(server.requests) <= 4
  server.answers = lambda *_: said('5')
  before = len(server.requests)
  values = [v.value for v in scorer.score_all(pairs)]
  assert values[:2] == [4, 4] and values[2] == 5
  assert len(server.requests) - before <= 2


def test_a_cache_that_cannot_be_written_is_told_first(serve, tmp_path):
  server = serve(lambda *_: said('4'))
  other = tmp_path / 'notes.txt'
  other.write_text('mine\n')
  with pytest.raises(JudgeError, match='holds no replies: it is some other'):
    judge(ask(server.url, cache=str(other)), text_item(''), 'x')
  assert other.read_text() == 'mine\n'
  with pytest.raises(JudgeError, match='cannot be used.*nothing was asked'):
    judge(ask(server.url, cache=str(tmp_path)), text_item(''), 'x')
  assert not server.requests


@pytest.mark.parametrize(
  ('reply', 'value'),
  [
    ('7', 7),
    (' 7.5\n', 7.5),
    ('**8**', 8),
    ('Rating: 8/10', 8),
    ('The score is 3.', 3),
    ('[[9]]', 9),
    ('6. It has 3 faults.', 6),
    ('I would say 4', 4),
    ('On a scale from 1 to 10: 7', None),
    ('between 6 and 7', None),
    ('seven', None),
    ('v2', None),
    ('', None),
  ],
)
def test_the_rating_of_a_reply(reply, value):
  found = rating(reply)
  assert np.isnan(found) if value is None else found == value


def test_a_server_that_stays_away_ends_the_run(serve):
  server = serve(lambda *_: (500, b''))
  with pytest.raises(JudgeError, match='no reply in 3 tries.*HTTP 500'):
    judge(ask(server.url), text_item(''), 'x')
  assert len(server.requests) == 3
  server.close()
  with pytest.raises(JudgeError, match='start the server'):
    judge(ask(server.url, retries=0), text_item(''), 'x')


def test_a_refusal_is_not_tried_again(serve):
  server = serve(lambda *_: (401, b'{"error": "no such key"}'))
  with pytest.raises(JudgeError, match='HTTP 401.*no such key.*the key'):
    judge(ask(server.url), text_item(''), 'x')
  assert len(server.requests) == 1


@pytest.mark.parametrize('reply', ['very good', '11', '0', ''])
def test_a_reply_without_a_rating_is_no_score(serve, reply):
  server = serve(lambda *_: said(reply))
  with pytest.raises(JudgeError, match='expected a rating from 1 to 10'):
    judge(ask(server.url), text_item(''), 'x')


def test_replies_are_kept(serve, tmp_path):
  cache = tmp_path / 'cache' / 'replies.jsonl'
  server = serve(lambda *_: said('3'))
  scorer = ask(server.url, cache=str(cache))
  pairs = [(text_item(''), Answer((t,))) for t in ('a', 'b', 'a')]
  assert [v.value for v in scorer.score_all(pairs)] == [3, 3, 3]
  assert len(server.requests) == 2
  # A line cut off by the end of a process is asked anew, the others are not.
  cache.write_text(cache.read_text() + '\n["half')
  server.close()
  assert judge(scorer, text_item(''), 'b')[1] == 3
  again = serve(lambda *_: said('5'))
  other = ask(again.url, cache=str(cache))
  assert judge(other, text_item(''), 'c')[1] == 5
  assert len(cache.read_text().split()) > 2
  assert judge(other, text_item(''), 'a')[1] == 3, 'the address is no matter'


def test_a_key_that_is_not_there(serve, monkeypatch):
  monkeypatch.delenv('NO_KEY', raising=False)
  server = serve(lambda *_: said('3'))
  with pytest.raises(JudgeError, match='NO_KEY is not set'):
    judge(ask(server.url, key='NO_KEY'), text_item(''), 'x')
  assert not server.requests


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({}, 'either'),
    ({'function': lengths, 'endpoint': 'http://x'}, 'either'),
    ({'endpoint': 'http://x'}, 'name the endpoint'),
    ({'endpoint': 'localhost:8000', 'model': 'm'}, 'http://localhost:8000/v1'),
    ({'function': lengths, 'low': 3.0, 'high': 3.0}, 'not below'),
    ({'function': lengths, 'template': '{prompt}'}, 'are needed'),
    ({'function': lengths, 'template': '{promt}{response}'}, 'promt'),
    ({'function': lengths, 'template': '{prompt}{response:>9}'}, '>9'),
    ({'function': 'os:rename'}, 'a function of two arguments'),
    ({'function': 'os:system'}, 'a function of two arguments'),
    ({'function': 'json:nothing'}, "'json' has no 'nothing'"),
    ({'function': 'nothing.py:f'}, 'there is no file nothing.py'),
  ],
)
def test_judges_that_cannot_be_are_refused(options, words):
  with pytest.raises(TaskError, match=words):
    Judge(**options)
