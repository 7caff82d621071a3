"""What the trials of a sweep change, read from text or made in Python."""

from ml_collections import config_dict
import pytest

from evojax_llm.runs import run_config
from evojax_llm.runs import sweep_changes as changes
from evojax_llm.runs.errors import UserError

SIGMA = 'strategy.options.sigma'


@pytest.fixture
def config():
  config = run_config.RunConfig().to_config()
  config.strategy.options = config_dict.ConfigDict(
    {'sigma': 0.1, 'rescore': True, 'merge': 'ties'}
  )
  return config


def test_text_is_the_product_of_values_of_the_types_of_their_fields(config):
  text = f'{SIGMA}=1,1e-2; seed=0..2;strategy.options.rescore=false'
  found = changes.parse(text, config)
  assert len(found) == 6
  assert found[0] == {
    SIGMA: 1.0,
    'seed': 0,
    'strategy.options.rescore': False,
  }
  assert [type(v) for v in found[-1].values()] == [float, int, bool]
  assert changes.parse('dev_limit=None,5', config) == [
    {'dev_limit': None},
    {'dev_limit': 5},
  ]
  assert changes.parse('weights=(1,2),(3.5,4)', config) == [
    {'weights': (1, 2)},
    {'weights': (3.5, 4)},
  ]
  assert changes.parse('tasks="a,b",c', config) == [
    {'tasks': 'a,b'},
    {'tasks': 'c'},
  ]


@pytest.mark.parametrize(
  'text, words',
  [
    ('sigma=1', "Did you mean 'strategy.options.sigma'?"),
    ('strategy.optoins.sigma=1', "Did you mean 'strategy.options.sigma'?"),
    ('sede=1', "Did you mean 'seed'?"),
    ('seed=x', 'seed=x; expected a value of type int'),
    ('seed=1.5', 'seed=1.5; expected a value of type int'),
    (f'{SIGMA}=much', 'expected a value of type float'),
    ('strategy.options.rescore=2', 'expected a value of type bool'),
    ('seed', "expected 'field=value,value'"),
    ('seed=', "expected 'field=value,value'"),
    ('seed=1;seed=2', 'once for each field'),
    ('seed=4..0', 'expected values of a field'),
    ('', 'expected values of a field'),
  ],
)
def test_what_text_cannot_mean_is_refused(config, text, words):
  with pytest.raises(UserError, match=r'^Got') as caught:
    changes.parse(text, config)
  assert words in str(caught.value)


def test_parts_are_combined():
  sigmas = changes.values(SIGMA, 0.1, 1.0)
  seeds = changes.values('seed', 3, 4)
  assert changes.product(sigmas, seeds) == [
    {SIGMA: s, 'seed': n} for s in (0.1, 1.0) for n in (3, 4)
  ]
  assert changes.zipped(sigmas, seeds) == [
    {SIGMA: 0.1, 'seed': 3},
    {SIGMA: 1.0, 'seed': 4},
  ]
  assert changes.chain(sigmas, seeds) == sigmas + seeds
  with pytest.raises(ValueError):
    changes.zipped(sigmas, changes.values('seed', 1))


def test_draws_are_of_their_seed_and_in_range():
  fields = {
    'a': changes.log_uniform(0.01, 1.0),
    'b': changes.uniform(-1.0, 2.0),
    'c': changes.integers(3, 5),
    'd': ['x', 'y'],
  }
  drawn = changes.draws(40, fields, seed=1)
  assert drawn == changes.draws(50, fields, seed=1)[:40]
  assert drawn != changes.draws(40, fields, seed=2)
  assert all(0.01 <= change['a'] <= 1.0 for change in drawn)
  # Half of the logarithms lie below 0.1.
  assert 10 <= sum(change['a'] < 0.1 for change in drawn) <= 30
  assert all(-1.0 <= change['b'] <= 2.0 for change in drawn)
  assert {change['c'] for change in drawn} == {3, 4, 5}
  assert {change['d'] for change in drawn} == {'x', 'y'}


def test_names_are_short_and_tell_all_trials_apart():
  assert changes.names(
    [{SIGMA: 0.1, 'seed': 3}, {SIGMA: 0.1, 'seed': 4}, {}]
  ) == ['sigma=0.1,seed=3', 'sigma=0.1,seed=4', 'unchanged']
  assert changes.names([{'strategy.name': 'a', 'name': 'b'}]) == [
    'strategy.name=a,name=b'
  ]
  (name,) = changes.names([{'tasks': '/tasks of mine/a.json'}])
  assert name == 'tasks=tasks+of+mine+a.json'
  long = changes.names([{'tasks': 'x' * 200 + end} for end in 'ab'])
  assert len(set(long)) == 2 and all(len(name) <= 120 for name in long)
  with pytest.raises(UserError, match='seed=1 twice'):
    changes.names([{'seed': 1}, {'seed': 1}])


def test_trials_have_checked_configurations(config):
  config.seeds = 2
  found = changes.trials(config, changes.values(SIGMA, 0.5, 2.0))
  assert [trial.name for trial in found] == [
    'sigma=0.5,seed=0',
    'sigma=0.5,seed=1',
    'sigma=2.0,seed=0',
    'sigma=2.0,seed=1',
  ]
  assert found[-1].config.strategy.options['sigma'] == 2.0
  assert found[-1].config.seed == 1 and found[-1].config.seeds == 1
  assert config.strategy.options.sigma == 0.1
  for change, words in (
    ({'strategy.population': 0}, 'population 0; expected 1 or more'),
    ({'seed': 'x'}, "seed='x'"),
    ({'strategy.populatoin': 3}, 'Did you mean'),
  ):
    with pytest.raises(UserError, match=words):
      changes.trials(config, [change])


def test_configurations_are_named_by_what_tells_them_apart(config):
  other = config.copy_and_resolve_references()
  other.strategy.options.sigma, other.seed = 0.5, 2
  found = changes.as_trials([config, run_config.RunConfig.from_config(other)])
  assert [trial.name for trial in found] == [
    'seed=0,sigma=0.1',
    'seed=2,sigma=0.5',
  ]
  assert found[1].changes == {'seed': 2, SIGMA: 0.5}
  other.seeds = 2
  named = changes.as_trials({'x': config, 'y': other})
  assert [t.name for t in named] == ['x,seed=0', 'y,seed=2', 'y,seed=3']
  assert named[2].changes == {'config': 'y', 'seed': 3}
  assert changes.as_trials(found) == found


def test_only_what_is_swept_may_differ(config):
  first, second = changes.trials(config, changes.values(SIGMA, 0.5, 2.0))
  assert not changes.conflicts(first, second)
  config.dev_limit = 7
  (third,) = changes.trials(config, changes.values('seed', 9))
  assert changes.conflicts(first, third) == ['dev_limit: None there, 7 here']
