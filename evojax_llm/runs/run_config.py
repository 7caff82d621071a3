"""Everything that a run can be told, declared once, with ranges and defaults.

`RunConfig` is what the library works with. Command lines and configuration
files work with an `ml_collections.ConfigDict` of the same fields, from which
it is made, and checked, by `RunConfig.from_config`.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import Any
from typing import ClassVar

from ml_collections import config_dict

from evojax_llm import lookup
from evojax_llm import options as options_lib
from evojax_llm.genomes.layer_path_options import LayerPathOptions
from evojax_llm.genomes.merged_options import MergedOptions
from evojax_llm.genomes.seeded_options import SeededOptions
from evojax_llm.options import option
from evojax_llm.runs import errors
from evojax_llm.runs import stages as stages_lib
from evojax_llm.runs.refine_options import RefineOptions

_LISTS = ('adapters', 'experts', 'tasks', 'heldout_tasks')
_PATHS = ('model', *_LISTS, 'warm_start')

_ESTIMATES = ('', 'mean', 'weighted', 'pirt', 'mpirt', 'gmpirt')

# An unset number of at least one, and an unset text.
_count = functools.partial(option, None, low=1, kind=int)
_text = functools.partial(option, None, kind=str)


class _Part:
  """A part of a configuration, whose values are checked when it is made."""

  _path: ClassVar[str] = ''

  def __init_subclass__(cls, path: str = ''):
    cls._path = path

  def __post_init__(self):
    for name, known in options_lib.declared(type(self)).items():
      known = dataclasses.replace(known, name=f'config.{self._path}{name}')
      with errors.as_user_error(ValueError):
        known.check(getattr(self, name))

  def to_config(self) -> config_dict.ConfigDict:
    """Returns it as a `ConfigDict`, with placeholders for unset values."""
    config = config_dict.ConfigDict()
    known = options_lib.declared(type(self))
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, _Part):
        value = value.to_config()
      elif field.name in _LISTS:  # a text or a sequence
        config[field.name] = config_dict.placeholder(object)
      else:
        config[field.name] = typed(known[field.name])
      if value is not None:
        config[field.name] = value
    return config


@dataclasses.dataclass(frozen=True)
class StrategyConfig(_Part, path='strategy.'):
  """The search, and when it ends: at the first end that is reached."""

  name: str = option('genome_plus', 'the search')
  population: int = option(10, 'members of the initial population', low=1)
  generations: int = option(
    10, 'rounds of ask, score, tell after the initial population', low=0
  )
  patience: int | None = _count(
    'end after so many generations without a new best'
  )
  evaluations: int | None = _count('end when so many members were scored')
  tokens: int | None = _count('end when so many tokens were read and generated')
  seconds: float | None = option(
    None, 'end when the search has taken so long', low=0.0
  )
  options: dict[str, Any] = option({}, "the strategy's own options")


@dataclasses.dataclass(frozen=True)
class FormatConfig(_Part, path='format.'):
  """Keys of every task's `format`; see `tasks.task.Format`."""

  kind: str | None = _text('how answers are scored')
  prompt: str | None = _text('template with {question} and {choices}')
  instruction: str | None = _text('line above a multiple-choice question')
  choice: str | None = option(
    None, 'scored of an option', choices=(None, 'letter', 'text'), kind=str
  )
  max_new_tokens: int | None = option(
    None, 'tokens to decode at most', low=0, kind=int
  )
  stop: tuple[str, ...] = option((), 'strings at which an output is cut')


@dataclasses.dataclass(frozen=True)
class EnsembleConfig(_Part, path='ensemble.'):
  """The vote of the best members at the end."""

  size: int = option(
    5, 'members at most, dev says how many; 0 for no vote', low=0
  )
  rule: str = option('auto', 'how they decide')
  fixed: bool = option(
    False, 'whether so many evolved members vote, whatever dev says'
  )


@dataclasses.dataclass(frozen=True)
class RacingConfig(_Part, path='racing.'):
  """Stops members that can no longer matter; see `fitness.racing`."""

  rule: str = option(
    '', "'' scores all on everything", choices=('', 'paired', 'halving')
  )
  rounds: int = option(3, 'in which the items are asked', low=1)
  keep: int = option(1, 'members that are never stopped', low=1)
  z: float = option(2.0, 'standard errors that a stopped member lies behind')


@dataclasses.dataclass(frozen=True)
class FineTuningConfig(_Part, path='fine_tuning.'):
  """The baseline that learns by gradients; see `runs.fine_tuning`."""

  steps: int = option(100, 'most steps; 0 leaves the baseline out', low=0)
  rank: int | None = _count("of its adapter; the experts', or 8")
  alpha: float | None = option(None, 'scale is alpha / rank; twice the rank')
  lr: float = option(2e-4, 'learning rate, which falls to 0 with the steps')
  batch: int = option(16, 'rows of a step', low=1)
  optimizer: str = option('adamw', 'of optax')
  patience: int = option(3, 'looks at held rows without a gain', low=1)
  seed: int = option(0, 'of the rows that are held, and of all draws', low=0)


@dataclasses.dataclass(frozen=True)
class EstimateConfig(_Part, path='estimate.'):
  """Fitness from few dev items; see `fitness.estimates`."""

  rule: str = option('', "'' asks all dev items", choices=_ESTIMATES)
  anchors: float = option(
    0.1, 'dev items of each task that are asked, below 1 a share', low=1e-6
  )
  draw: str = option(
    'random', 'how they are drawn', choices=('random', 'clustered')
  )
  seed: int = option(0, 'of the draw', low=0)
  dimension: int = option(1, 'of the abilities', low=1)
  delta: float = option(
    0.5, 'weight of what was seen, of gmpirt', low=0.0, high=1.0
  )
  parameters: str = option(
    '', 'file of what the items ask, such as estimate.json of a run'
  )
  finalists: int = option(
    5, 'of the best members, to be scored on all dev items', low=1
  )


@dataclasses.dataclass(frozen=True)
class ParetoConfig(_Part, path='pareto.'):
  """The front that a search of several objectives ends with; `runs.front`."""

  objectives: str = option(
    '', "objectives beside the tasks: 'length' of answers, 'distance' from base"
  )
  choice: str = option(
    'knee', "which of the front is best/: knee, chebyshev, mean, 'best_of:NAME'"
  )
  exports: int = option(10, 'members of the front that are written', low=1)


@dataclasses.dataclass(frozen=True)
class MergedConfig(_Part, MergedOptions, path='merged.'):
  """The space `merged`, in which recipes of a merge evolve."""


@dataclasses.dataclass(frozen=True)
class RefineConfig(_Part, RefineOptions, path='refine.'):
  """Gradient steps that members take before they are scored."""


@dataclasses.dataclass(frozen=True)
class LayerPathConfig(_Part, LayerPathOptions, path='layer_path.'):
  """The space `layer_path`, in which paths through layers evolve."""


@dataclasses.dataclass(frozen=True)
class SeededConfig(_Part, SeededOptions, path='seeded.'):
  """The space `seeded`, in which members are seeds around a centre."""


@dataclasses.dataclass(frozen=True)
class ExecutionConfig(_Part, path='execution.'):
  """How programs run, which changes no result but for rounding."""

  dtype: str = option(
    'float32', 'of parameters and activations', choices=('float32', 'bfloat16')
  )
  base_dtype: str | None = option(
    None,
    "'int8' for eight-bit kernels of the base; what that changes is reported",
    choices=(None, 'int8'),
    kind=str,
  )
  form: str = option(
    'auto',
    'how a group of members is executed',
    choices=('auto', 'batched', 'folded'),
  )
  members_per_group: int | None = _count('members of a program call')
  prompts_per_batch: int | None = _count('most prompts of a program call')
  memory_budget_gib: float | None = option(
    None, 'memory to use on a device', low=0.0001
  )
  model_devices: int | None = _count(
    'devices that hold the base together, each a part; as few as have room'
  )
  population: str = option(
    'auto',
    "where genomes are: one 'device', 'cut' over all, the 'host' if need be",
    choices=('auto', 'device', 'cut', 'host'),
  )
  max_length: int | None = _count('longest prompt in tokens, with new tokens')


@dataclasses.dataclass(frozen=True)
class RunConfig(_Part):
  """A run.

  Names of files and folders are separated by commas; a `ConfigDict` may hold
  a sequence of them.

  Raises:
    UserError: a value is out of range, or two contradict each other.
  """

  name: str = option('', "part of the run folder's name")
  seed: int = option(0, 'of all randomness', low=0)
  seeds: int = option(1, 'runs, of this seed and those that follow', low=1)

  model: str = option('', "a Hugging Face folder; '' is the pocket model")
  adapters: str = option('', "PEFT folders of it, experts; 'pocket': its ten")
  experts: str = option(
    '', "models tuned from it, experts beside them; 'pocket': its four"
  )
  tasks: str = option(
    'main',
    "task files, pocket tasks or stages, 'file.py:Name', 'lm_eval:name'",
  )
  heldout_tasks: str = option('', 'tasks scored at the end alone, on test')
  weights: tuple[float, ...] = option((), 'of the tasks; () for equal ones')
  objective: str = option('weighted_mean', 'makes fitness of task scores')
  dev_limit: int | None = _count('dev items of each task that the search sees')
  dev_draw: int = option(0, 'seed that chooses them')
  resample: bool = option(
    False, 'choose other dev items in every generation, and score again'
  )
  test_limit: int | None = _count('test items of each task')
  pick_items: int | None = _count(
    'last dev items of each task, not searched, by which the result is picked'
  )
  dev_limits: tuple[int, ...] = option((), 'dev_limit by task')
  test_limits: tuple[int, ...] = option((), 'test_limit by task')
  allow_overlap: bool = option(False, 'items may occur in dev and in test')
  drop_overlap: bool = option(False, 'leave such items out of dev')
  skip_bad_rows: bool = option(
    False, 'leave out rows of task files that cannot be used'
  )
  allow_code: bool = option(
    False, 'run generated code, in limits, and code that task files name'
  )
  shots: int | None = option(
    None, 'worked examples before a question, from dev', low=0, kind=int
  )
  shots_seed: int | None = option(None, 'seed that chooses them', kind=int)
  system: str | None = _text('a text before everything')
  chat: bool = option(False, "put prompts through the model's chat template")

  space: str = option('adapters', 'what evolves')
  initial: tuple[Any, ...] = option(
    ('experts', 'zero', 'scaled_average', 'extrapolants'),
    'recipes of the first population, in order; the last one fills up',
  )
  warm_start: str = option(
    '', 'folder of a finished run, whose best members come first'
  )
  stages: tuple[Any, ...] = option(
    (), 'several searches, one after another: what each changes of this'
  )
  begin: str = option(
    '',
    'of a stage: what the best of the one before it is',
    choices=('', *stages_lib.BEGINNINGS),
  )
  require_signal: bool = option(
    False, 'end where all members of generation 0 score alike'
  )
  checkpoint_every: int = option(1, 'generations from one to the next', low=1)
  test_experts: bool = option(
    False, 'read all experts on test, not only those in the table'
  )

  format: FormatConfig = FormatConfig()
  strategy: StrategyConfig = StrategyConfig()
  ensemble: EnsembleConfig = EnsembleConfig()
  racing: RacingConfig = RacingConfig()
  estimate: EstimateConfig = EstimateConfig()
  merged: MergedConfig = MergedConfig()
  fine_tuning: FineTuningConfig = FineTuningConfig()
  refine: RefineConfig = RefineConfig()
  layer_path: LayerPathConfig = LayerPathConfig()
  seeded: SeededConfig = SeededConfig()
  pareto: ParetoConfig = ParetoConfig()
  execution: ExecutionConfig = ExecutionConfig()

  def __post_init__(self):
    super().__post_init__()
    for name in _PATHS:
      paths = map(str.strip, getattr(self, name).split(','))
      expanded = ','.join(os.path.expanduser(path) for path in paths)
      object.__setattr__(self, name, expanded)
    if self.resample and not (self.dev_limit or any(self.dev_limits)):
      raise errors.UserError(
        'config.resample chooses other dev items in every generation: say how '
        'many with config.dev_limit.'
      )
    choosers = {
      'resample': self.resample,
      'racing': self.racing.rule,
      'estimate': self.estimate.rule,
    }
    both = [f'config.{name}' for name, on in choosers.items() if on]
    if len(both) > 1:
      raise errors.UserError(
        f'{both[0]} and {both[1]} both choose dev items: leave one off.'
      )
    if self.pick_items and self.estimate.rule:
      raise errors.UserError(
        'config.pick_items and config.estimate both choose the result at the '
        'end: leave one off.'
      )
    if self.seed + self.seeds > 1 << 32:
      raise errors.UserError(f'Got config.seed {self.seed}; expected 32 bits.')
    stages_lib.split(self)

  @classmethod
  def from_config(cls, config: Any) -> 'RunConfig':
    """Makes it of a `ConfigDict`, a mapping such as config.json, or itself.

    What is not there has its default.

    Raises:
      UserError: a key is unknown, a value is out of range, or two contradict
        each other.
    """
    if isinstance(config, cls):
      return config
    if isinstance(config, config_dict.ConfigDict):
      config = config.to_dict()
    return _read(cls, config, '')

  def to_dict(self) -> dict[str, Any]:
    """Returns its values as nested dicts, for config.json."""
    return dataclasses.asdict(self)


def _read(cls: type, values: Any, path: str) -> Any:
  """A part of a configuration from a mapping."""
  if not isinstance(values, Mapping):
    if not path:
      raise errors.UserError(
        f'Got the configuration {values!r}; expected a RunConfig, a ConfigDict '
        'or options by name, which evojax_llm.systems.load reads.'
      )
    raise errors.UserError(
      f'Got config.{path.rstrip(".")} {values!r}; expected options by name.'
    )
  defaults = {field.name: field.default for field in dataclasses.fields(cls)}
  read = {}
  for name, value in values.items():
    if name not in defaults:
      raise errors.UserError(
        f'Got unknown config.{path}{name}'
        + lookup.expected(name, defaults, some='some of')
      )
    if isinstance(defaults[name], _Part):
      value = _read(type(defaults[name]), value, f'{path}{name}.')
    elif isinstance(value, (list, tuple)):
      # Names may come as a sequence, and JSON has no tuples.
      is_text = isinstance(defaults[name], str)
      value = ','.join(map(str, value)) if is_text else tuple(value)
    read[name] = value
  return cls(**read)


def typed(option: options_lib.Option) -> Any:
  """Returns a default as a `ConfigDict` has it: typed, also where unset."""
  if option.parts:
    return {k: config_dict.placeholder(v) for k, v in option.parts.items()}
  if option.default is None:
    return config_dict.placeholder(option.kind)
  return option.default
