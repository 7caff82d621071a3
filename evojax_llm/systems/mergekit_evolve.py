r"""Configurations of mergekit-evolve (mergekit 0.1.5, docs/evolve.md) as runs.

  evojax-llm evolve --config=evolve.yml

with evolve.yml in its format:

  genome:
    models: [models/base+adapters/code, models/base+adapters/math]
    merge_method: dare_ties
    base_model: models/base
    layer_granularity: 6
  tasks:
    - {name: gsm8k_train, metric: exact_match, weight: 1.0}
    - my_task.json
  limit: 200

It becomes a search by CMA-ES in the space `merged`, whose settings
--config.NAME changes as in any other: from weights of 1/n and densities of 1,
with a deviation of 1/6 and 4 + floor(3 ln genes) members, for 100 evaluations.
Of the flags of its command line

  --max-fevals                  is --config.strategy.evaluations, exactly
  --sigma0                      --config.strategy.options.sigma
  --force-population-size       --config.strategy.population
  --timeout                     --config.strategy.seconds
  --random-seed                 --config.seed, of the search as well
  --batch-size                  --config.execution.prompts_per_batch
  --storage-path                --workdir
  --task-search-path            the path of the YAML file as the task's name

Members are merged on the device and never written, so that --in-memory, --vllm,
--strategy and --reshard have nothing to say. In place of a list of benchmarks
that must not be searched, every run searches on dev items alone, refuses those
that occur in test (--config.allow_overlap), and reads test once, at the end.

A task is a task file, one of the pocket's by name, or else one of
lm-evaluation-harness. Of `limit` items a draw decides, --config.dev_draw, in
place of the order. Where mergekit-evolve folds a gene of density back at 0 and
1, it is cut there. Adapters are added to the base in float32, which stays the
type of a merge; --config.merged.on=factors merges them factor by factor, at a
fraction of the cost.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
import pathlib
import re
from typing import Any

from ml_collections import config_dict

from evojax_llm import lookup
from evojax_llm import pocket
from evojax_llm.models import folders
from evojax_llm.recipes import side_files
from evojax_llm.recipes import yaml_text
from evojax_llm.runs import errors
from evojax_llm.runs import presets
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.presets import Preset

# By method: its genes in our words, and whether it normalises by default.
_METHODS = {
  'linear': ('weights', True),
  'task_arithmetic': ('weights', False),
  'ties': ('weights,density', True),
  'dare_ties': ('weights,density', True),
  'slerp': ('weights', None),
}
_OF_CHANGES = ('task_arithmetic', 'ties', 'dare_ties')
_KEYS = {
  'genome': dict,
  'tasks': list,
  'limit': int,
  'num_fewshot': int,
  'shuffle': bool,
  'random_init': bool,
  'apply_chat_template': bool,
  'fewshot_as_multiturn': bool,
}
_GENOME = {
  'models': list,
  'merge_method': str,
  'base_model': str,
  'tokenizer_source': str,
  'layer_granularity': int,
  'normalize': bool,
  'allow_negative_weights': bool,
  'filters': list,
  'smooth': bool,
}
_TASK = {'name': str, 'weight': float, 'metric': str}
# Of one member in each generation at least. The first is one recipe, whose
# members are one evaluation; so many members as there are genes say.
_SEARCH = Preset('cma_es', {'sigma': 1 / 6}, ('averages',), 1, 100)
_FILTER = re.compile(r'[\w-]+')


class EvolveError(UserError):
  """A configuration that cannot be carried out; says which key and why."""


def read(path: str | os.PathLike) -> config_dict.ConfigDict:
  """Returns a file's configuration, with names in it relative to the caller.

  Raises:
    UserError: naming the key, what was given and what was expected.
    ModelError: a folder that it names is none.
  """
  _, raw = yaml_text.read(path, EvolveError)
  return _Reader(path, raw).config()


class _Reader:
  """One file."""

  def __init__(self, path: str | os.PathLike, raw: Mapping[str, Any]):
    self._path = path
    if 'merge_method' in raw:
      raise self._fail(
        'merge_method',
        'is the recipe of one merge, which `evojax-llm merge '
        f'--recipe={path}` makes; expected genome and tasks',
      )
    self._top = self._part(raw, '', _KEYS, ('genome', 'tasks'))
    self._genome = self._part(
      self._top['genome'], 'genome.', _GENOME, ('models', 'merge_method')
    )
    self._method = self._genome['merge_method']
    if self._method not in _METHODS:
      raise self._fail(
        'genome.merge_method',
        f'{self._method!r}{lookup.expected(self._method, _METHODS)} '
        'config.merged.method takes others',
      )

  def _fail(self, key: str, what: str) -> EvolveError:
    return EvolveError(f'{self._path}: {key}: {what}.')

  def _part(
    self,
    raw: Any,
    where: str,
    known: Mapping[str, type],
    needed: Sequence[str] = (),
  ) -> dict[str, Any]:
    """A mapping whose keys are known and whose values are of their types."""
    for key, value in raw.items():
      if key not in known:
        hint = lookup.expected(key, known, some='some of').removesuffix('.')
        raise self._fail(f'{where}{key}', f'not known{hint}')
      kind = (int, float) if known[key] is float else known[key]
      bad = isinstance(value, bool) and known[key] is not bool
      if value is not None and (bad or not isinstance(value, kind)):
        raise self._fail(
          f'{where}{key}',
          f'{yaml_text.kind(value)}; expected {yaml_text.kind(known[key]())}',
        )
    for key in needed:
      if not raw.get(key):
        raise self._fail(f'{where}{key}', 'missing')
    return {key: value for key, value in raw.items() if value is not None}

  def config(self) -> config_dict.ConfigDict:
    """The whole of it."""
    genome, top, method = self._genome, self._top, self._method
    evolve, normalize = _METHODS[method]
    normalize = genome.get('normalize', normalize)
    config = presets.of_preset('cma_es', {'cma_es': _SEARCH})
    config.strategy.evaluations = _SEARCH.generations
    config.name = pathlib.Path(self._path).stem
    config.space = 'merged'
    base, adapters, models = self._models()
    config.model, config.adapters, config.experts = base, adapters, models
    config.merged.method, config.merged.evolve = method, evolve
    if normalize is not None and method != 'slerp':
      config.merged.options = f'normalize={"weights" if normalize else "none"}'
    # A linear merge of changes is that of the models where weights sum to one.
    if method == 'linear' and not (normalize or models):
      raise self._fail(
        'genome.normalize',
        'false; a linear merge of adapters would scale the base. Take '
        'task_arithmetic, or leave it out',
      )
    exact = method in ('task_arithmetic', 'linear')
    config.merged.on = 'exact' if exact and not models else 'weights'
    negative = genome.get('allow_negative_weights', False) or method == 'slerp'
    config.merged.weights = 'free' if negative else 'absolute'
    config.merged.bounds = ','.join(f'{n}=0:1' for n in evolve.split(','))
    blocks = self._groups(config, base)
    self._tasks(config)
    shots, chat = top.get('num_fewshot'), top.get('apply_chat_template', True)
    self._check_turns(config, chat and bool(shots))
    if top.get('limit', 1) < 1:
      raise self._fail('limit', f'{top["limit"]}; expected 1 or more')
    config.dev_limit, config.shots, config.chat = top.get('limit'), shots, chat
    sets = len(genome.get('filters', ())) + 1
    genes = blocks * len(genome['models']) * sets * len(evolve.split(','))
    config.strategy.population = 4 + math.floor(3 * math.log(genes))
    if top.get('random_init'):
      config.initial = ('random',)
    return config

  def _models(self) -> tuple[str, str, str]:
    """The base, the adapters, and the models that are neither."""
    genome, base = self._genome, self._genome.get('base_model')
    adapters, models, bases = [], [], {}
    for i, ref in enumerate(genome['models']):
      where = f'genome.models[{i}]'
      if not isinstance(ref, str):
        raise self._fail(
          where,
          f"{yaml_text.kind(ref)}; expected a folder, or 'FOLDER+ADAPTER'",
        )
      model, adapter = _split(ref)
      if adapter:
        adapters.append(adapter)
        bases.setdefault(_folder(model), (model, where))
      else:
        models.append(model)
    if base is not None:
      if _split(base)[1]:
        raise self._fail(
          'genome.base_model',
          f'{base} has an adapter; make it a folder first with `evojax-llm '
          'merge`',
        )
      bases.setdefault(_folder(base), (base, 'genome.base_model'))
    if len(bases) > 1:
      (one, _), (other, where) = list(bases.values())[:2]
      raise self._fail(
        where,
        f'{other}, beside adapters of {one}; expected one base. Make a folder '
        'of a model and its adapter with `evojax-llm merge`',
      )
    if base is None and self._method in _OF_CHANGES:
      raise self._fail(
        'genome.base_model', f'missing; {self._method} merges changes of it'
      )
    chosen = base or (next(iter(bases.values()))[0] if bases else models[0])
    if self._method in _OF_CHANGES:
      # Of the base there is no change, and a gene would mean nothing.
      models = [m for m in models if _folder(m) != _folder(chosen)]
    if len(adapters) + len(models) < 2:
      raise self._fail('genome.models', 'expected two or more beside the base')
    self._check_tokenizer(chosen, models)
    return chosen, ','.join(adapters), ','.join(models)

  def _check_tokenizer(self, base: str, models: Sequence[str]) -> None:
    """Refuses vocabularies that differ; the base's tokenizer is taken."""
    wanted = self._genome.get('tokenizer_source')
    if wanted is None:
      return
    own = side_files.vocabulary(_folder(base))
    others = models if wanted in ('base', 'union') else [*models, wanted]
    for other in others:
      found = side_files.vocabulary(_folder(_split(other)[0]))
      if found is not None and own is not None and found != own:
        raise self._fail(
          'genome.tokenizer_source',
          f'{wanted}: {base} has {len(own)} tokens, and {other} has '
          f'{len(found)} or other ones; rows of embeddings are not moved. '
          'Resize the models to one vocabulary first',
        )

  def _groups(self, config: config_dict.ConfigDict, base: str) -> int:
    """Sets what has genes of its own; returns how many blocks of layers do."""
    genome, parts, blocks = self._genome, [], 1
    size, filters = genome.get('layer_granularity', 0), genome.get('filters')
    if self._method == 'slerp' and (filters or genome.get('smooth')):
      key = 'filters' if filters else 'smooth'
      raise self._fail(
        f'genome.{key}', 'slerp has none: each block is of two models'
      )
    if size > 0:
      layers = _layers(base)
      if layers % size:
        sizes = [n for n in range(1, layers + 1) if not layers % n]
        raise self._fail(
          'genome.layer_granularity',
          f'{size}, and {base} has {layers} layers; expected one of '
          f'{", ".join(map(str, sizes))}',
        )
      blocks = layers // size
      smooth = genome.get('smooth') and blocks > 1
      parts.append(f'knots:{blocks}' if smooth else f'layers:{size}')
    for one in filters or ():
      if not isinstance(one, str) or not _FILTER.fullmatch(one):
        raise self._fail(
          'genome.filters',
          f'{one!r}; expected a part of a name without dots, as self_attn, mlp '
          'or up_proj',
        )
    if filters:
      parts.append(f'filters:{"/".join(filters)}')
    config.merged.groups = ','.join(parts) or 'model'
    return blocks

  def _tasks(self, config: config_dict.ConfigDict) -> None:
    """Sets tasks and their weights."""
    names, weights = [], []
    for i, task in enumerate(self._top['tasks']):
      where = f'tasks[{i}]'
      task = {'name': task} if isinstance(task, str) else task
      if not isinstance(task, dict):
        raise self._fail(where, f'{yaml_text.kind(task)}; expected a name')
      task = self._part(task, f'{where}.', _TASK, ('name',))
      weight = float(task.get('weight', 1.0))
      if weight <= 0:
        raise self._fail(
          f'{where}.weight',
          f'{weight:g}; expected more than zero: the less of a metric is the '
          'better, the less of it is searched for anyway',
        )
      names.append(self._task_name(task, where))
      weights.append(weight)
    config.tasks, config.weights = ','.join(names), tuple(weights)

  def _task_name(self, task: Mapping[str, Any], where: str) -> str:
    """What a run calls a task of the file."""
    name, metric = task['name'], task.get('metric')
    if ',' in name:
      raise self._fail(f'{where}.name', f'{name!r}; expected one name')
    path = pathlib.Path(os.path.expanduser(name))
    of_harness = path.suffix in ('.yaml', '.yml')
    known = ':' in name or path.is_file() or name in pocket.task_names()
    if known and not of_harness:
      if metric not in (None, 'acc', 'acc,none'):
        raise self._fail(
          f'{where}.metric',
          f'{metric!r}; {name} is judged by its own kind: leave it out',
        )
      return name
    metric, _, chosen = (metric or 'acc,none').partition(',')
    if chosen not in ('', 'none'):
      raise self._fail(
        f'{where}.metric',
        f'{metric},{chosen}: the first filter of a task is taken, and none is '
        f'named; expected {metric!r}',
      )
    return f'lm_eval:{name}:{metric}'

  def _check_turns(self, config: config_dict.ConfigDict, asked: bool) -> None:
    """Refuses, or says, where worked examples are put otherwise."""
    given = self._top.get('fewshot_as_multiturn')
    harness = [n for n in config.tasks.split(',') if n.startswith('lm_eval:')]
    files = len(config.tasks.split(',')) > len(harness)
    if not asked:
      return
    if given is None and harness:
      errors.say(
        f'{self._path}: fewshot_as_multiturn: worked examples of '
        f'{", ".join(harness)} stand in one turn with the question.'
      )
    elif given and harness or given is False and files:
      own = 'in one turn' if given else 'in turns of their own'
      raise self._fail(
        'fewshot_as_multiturn',
        f'{str(given).lower()}; worked examples of '
        f'{"the harness" if given else "task files"} stand {own}: leave it out',
      )


def _split(ref: str) -> tuple[str, str]:
  """A model and its adapter, '' where there is none."""
  if os.path.isdir(os.path.expanduser(ref)):
    return ref, ''
  model, _, adapter = ref.partition('+')
  return model, adapter


def _folder(model: str) -> pathlib.Path:
  return folders.existing_folder(model, 'a model folder').resolve()


def _layers(base: str) -> int:
  """The layers of a model."""
  from evojax_llm.models import hub

  return hub.load_config(_folder(base))[0].num_layers
