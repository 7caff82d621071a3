"""The plain mixes that stand beside every result."""

import types

import numpy as np
import pytest

from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.models import peft
from evojax_llm.runs import baselines

NAMES = ('x', 'y', 'z')


def make_experts():
  rng = np.random.default_rng(0)
  return {
    'layers': {
      'mlp': {
        'up_proj': {
          'a': rng.normal(size=(3, 2, 5, 4)).astype(np.float32),
          'b': rng.normal(size=(3, 2, 4, 6)).astype(np.float32),
        }
      }
    }
  }


class Score:
  """Fitness looked up by (weights, factor); everything else gets 0.1."""

  def __init__(self, **known):
    self.known = known
    self.scored = []

  def __call__(self, mixes):
    self.scored += mixes
    fitness = np.array([self._one(m) for m in mixes], np.float32)
    return types.SimpleNamespace(fitness=fitness, task_scores=fitness[:, None])

  def _one(self, mix):
    parts = [NAMES[i] for i in np.flatnonzero(mix.weights)]
    who = 'even' if len(parts) == len(NAMES) else ''.join(parts)
    return self.known.get(f'{who}_{mix.factor:g}', 0.1)


def test_mixes_weigh_a_and_b_and_scale_b_alone():
  experts = make_experts()
  scale = {'layers': {'mlp': {'up_proj': np.ones(2, np.float32)}}}
  space = AdapterSpace(peft.AdapterSet(NAMES, experts, scale, rank=4), None)
  mixes = [
    baselines.Mix((0.0, 1.0, 0.0)),
    baselines.Mix((0.5, 0.25, 0.25), 3.0),
    baselines.Mix((1 / 3,) * 3, 0.0),
  ]
  mixed = baselines.mix_experts(space, mixes)['layers']['mlp']['up_proj']
  pair = experts['layers']['mlp']['up_proj']
  np.testing.assert_array_equal(mixed['a'][0], pair['a'][1])
  np.testing.assert_array_equal(mixed['b'][0], pair['b'][1])
  weights = np.array([0.5, 0.25, 0.25])
  for name, factor in (('a', 1.0), ('b', 3.0)):
    expected = factor * np.einsum('n,n...->...', weights, pair[name])
    np.testing.assert_allclose(mixed[name][1], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(mixed['a'][2], pair['a'].mean(0), atol=1e-6)
  np.testing.assert_array_equal(mixed['b'][2], 0.0)


def test_the_best_by_dev_are_chosen():
  score = Score(x_1=0.3, y_1=0.6, even_1=0.4, even_3=0.5, y_2=0.7, even_0=0.2)
  rows = {r.name: r for r in baselines.choose_baselines(NAMES, score)}
  assert list(rows) == [
    'base',
    'best expert',
    'average',
    'soup',
    'scaled average',
    'scaled best expert',
  ]
  assert rows['best expert'].detail == 'y'
  assert rows['scaled average'].mix.factor == 3.0
  assert rows['scaled best expert'].mix == baselines.Mix((0.0, 1.0, 0.0), 2.0)
  found = [float(r.task_scores[0]) for r in rows.values()]
  assert found == pytest.approx([0.2, 0.6, 0.4, 0.6, 0.5, 0.7])
  # Nothing is scored twice, and what was scored to choose a row is counted.
  assert len(score.scored) == len(set(score.scored))
  assert rows['best expert'].evaluations == 3
  assert rows['scaled best expert'].evaluations == 3 + len(
    baselines.EXPERT_FACTORS
  )
  assert rows['scaled average'].evaluations == 1 + len(
    baselines.AVERAGE_FACTORS
  )


def test_a_soup_is_of_the_best_experts_and_as_large_as_dev_says():
  known = {'x_1': 0.3, 'y_1': 0.6, 'z_1': 0.5, 'yz_1': 0.7, 'even_1': 0.4}
  soup = {r.name: r for r in baselines.choose_baselines(NAMES, Score(**known))}
  row = soup['soup']
  assert row.mix == baselines.Mix((0.0, 0.5, 0.5)) and row.detail == 'best 2'
  assert float(row.task_scores[0]) == pytest.approx(0.7)
  # Three experts, their average, and the best two.
  assert row.evaluations == 5
  for changed, detail in (
    ({'even_1': 0.8}, 'best 3'),
    ({'y_1': 0.9}, 'best 1'),
  ):
    score = Score(**known | changed)
    rows = {r.name: r for r in baselines.choose_baselines(NAMES, score)}
    assert rows['soup'].detail == detail
    assert len(score.scored) == len(set(score.scored))
  alone = baselines.choose_baselines(('x',), Score(x_1=0.3))
  assert [r.detail for r in alone if r.name == 'soup'] == ['best 1']


def test_no_scaling_is_chosen_where_it_does_not_help():
  score = Score(y_1=0.6, y_2=0.6, even_1=0.4)
  rows = {r.name: r for r in baselines.choose_baselines(NAMES, score)}
  assert rows['scaled best expert'].mix.factor == 1.0
  assert rows['scaled average'].mix.factor == 1.0


def test_a_failed_mix_is_not_chosen():
  score = Score(x_1=np.nan, z_1=0.2, even_2=np.nan, z_1_5=np.nan)
  rows = {r.name: r for r in baselines.choose_baselines(NAMES, score)}
  assert rows['best expert'].detail == 'z'
  assert rows['scaled average'].mix.factor != 2.0
