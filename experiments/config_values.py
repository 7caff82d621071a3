"""Values of a configuration that can be judged without loading anything."""

from typing import Any

from experiments.command import CommandError

SPACES = ('adapters', 'coefficients', 'weights')


def check(config: Any) -> None:
  """Raises CommandError at the first value that cannot be."""
  strategy, execution = config.strategy, config.execution
  for name, value, least in (
    ('strategy.population', strategy.population, 1),
    ('strategy.generations', strategy.generations, 0),
    ('strategy.patience', strategy.patience, 1),
    ('seed', config.seed, 0),
    ('seeds', config.seeds, 1),
    ('ensemble.size', config.ensemble.size, 0),
    ('dev_limit', config.dev_limit, 1),
    ('test_limit', config.test_limit, 1),
    ('shots', config.shots, 0),
    ('execution.members_per_group', execution.members_per_group, 1),
    ('execution.prompts_per_batch', execution.prompts_per_batch, 1),
    ('execution.max_length', execution.max_length, 1),
  ):
    if value is not None and value < least:
      raise CommandError(
        f'Got config.{name}={value}; expected {least} or more.'
      )
  if config.space == 'weights' and execution.base_dtype:
    raise CommandError(
      'config.execution.base_dtype is of a base that members share; members of '
      'config.space=weights share nothing: leave it off.'
    )
  if config.resample and not (config.dev_limit or any(config.dev_limits)):
    raise CommandError(
      'config.resample chooses other dev items in every generation: say how '
      'many with config.dev_limit.'
    )
  if config.resample and config.racing.rule:
    raise CommandError(
      'config.resample and config.racing both choose dev items: leave one off.'
    )
  if config.seed + config.seeds > 1 << 32:
    raise CommandError(f'Got config.seed={config.seed}; expected 32 bits.')
  for name, value, known in (
    ('space', config.space, SPACES),
    ('execution.dtype', execution.dtype, ('float32', 'bfloat16')),
    ('execution.base_dtype', execution.base_dtype, (None, 'int8')),
    ('racing.rule', config.racing.rule, ('', 'paired', 'halving')),
    ('execution.form', execution.form, ('auto', 'batched', 'folded')),
  ):
    if value not in known:
      raise CommandError(
        f'Got config.{name}={value!r}; expected one of '
        f'{", ".join(map(repr, known))}.'
      )
