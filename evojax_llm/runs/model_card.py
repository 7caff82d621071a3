"""The model card of an export: what it is made of, how it scores, on what."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import re
from typing import Any

import evojax_llm
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import model_name
from evojax_llm.runs import report
from evojax_llm.runs import rows

_ANCESTORS = 20
_LICENCE = re.compile(r'^(license(?:_name|_link)?): *(\S.*?) *$', re.MULTILINE)
_LIBRARIES = {
  'adapter': 'peft',
  'model': 'transformers',
  'path': 'evojax_llm',
}
_KINDS = {
  'adapter': 'A LoRA adapter of {base}',
  'model': 'A model made of {base}',
  'path': 'A path through layers of models made of {base}',
}


def text(
  run: rows.Run, row: rows.Row, kind: str, notes: Sequence[str] = ()
) -> str:
  """Returns README.md of a row; `kind` of a member is one of `export`'s.

  `notes` are lines below its recipe, each of them once.
  """
  base = model_name(run.files.model)
  base = base if '/' in base else run.files.name
  stated = licence(run.files.model)
  front = {
    'base_model': base,
    'library_name': _LIBRARIES[kind],
    'pipeline_tag': 'text-generation',
    **stated,
    'tags': ['evojax_llm', 'evolution', 'merge']
    + (['lora'] if kind == 'adapter' else []),
  }
  # JSON is YAML, and quotes what needs it.
  lines = [f'{key}: {json.dumps(value)}' for key, value in front.items()]
  name = run.summary['name'] if run.summary else run.path.absolute().name
  what = _KINDS[kind].format(base=f'`{base}`')
  if row.vote:
    what = (
      f'The {len(row.members)} members of a vote (rule `{row.vote.rule}`), '
      f'each {what[0].lower()}{what[1:]}. `{rows.VOTE_FILE}` says how they '
      'decide; `score` and `generate` of evojax_llm take the folder as --run'
    )
  sections = [
    '\n'.join(['---', *lines, '---']),
    f'# {name}: {row.name}',
    f'{what}, made by evojax_llm {evojax_llm.__version__}.',
    *_made_of(run, row),
    *dict.fromkeys(notes),
    *_scores(row),
    *_lineage(run, row),
    *_data(run),
    '## Licence of the base',
    ', '.join(stated.values())
    or f'Not stated in the folder of `{base}`: see where it comes from.',
  ]
  return '\n\n'.join(sections) + '\n'


def _made_of(run: rows.Run, row: rows.Row) -> list[str]:
  strategy = run.config.strategy
  options = run.summary['search']['changed'] if run.summary else {}
  options = ', '.join(f'{k}={v}' for k, v in options.items())
  experts = run.files.expert_names
  searched = (
    f'Strategy `{strategy.name}` with a population of {strategy.population}, '
    f'up to {strategy.generations} generations'
    + (f' ({options})' if options else '')
    + f'; space `{run.config.space}`, seed {run.config.seed}. Experts: '
    + ', '.join(f'`{name}`' for name in experts)
    + '.'
  )
  recipes = {}
  if row.name == report.EVOLVED and run.summary:
    recipes = run.summary['best'].get('recipe')
  text = json.dumps(_rounded(recipes or row.recipes()), indent=2)
  return ['## Recipe', searched, f'```json\n{text}\n```']


def _rounded(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _rounded(inner) for key, inner in value.items()}
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [_rounded(inner) for inner in value]
  return float(f'{value:.4g}') if isinstance(value, float) else value


def _scores(row: rows.Row) -> list[str]:
  if row.entry is None:
    return []
  lines = [['', 'dev', 'test', '95 %', 'metric']]
  dev, test = row.entry['dev'], row.entry['test']
  for name in ('fitness', *dev['tasks']):
    one, two = (
      split and (split['tasks'].get(name) or split[name])
      for split in (dev, test)
    )
    interval = '-'
    if two and two['low'] is not None:
      interval = f'{100 * two["low"]:.1f} to {100 * two["high"]:.1f}'
    shown = [report.shown(entry) if entry else '-' for entry in (one, two)]
    lines.append([name, *shown, interval, one.get('metric', '')])
  return [
    '## Scores',
    report.aligned(lines),
    'Shares in percent. Everything was chosen on dev; test was read once.',
  ]


def _lineage(run: rows.Run, row: rows.Row) -> list[str]:
  if row.name != report.EVOLVED or not run.summary:
    return []
  ancestors = run.summary['lineage']
  lines = [['member', 'generation', 'operator', 'parents', 'fitness']]
  for one in ancestors[-_ANCESTORS:]:
    parents = ', '.join(map(str, (*one['parents'], *one.get('experts', ()))))
    fitness = one['fitness']
    shown = 'failed' if fitness is None else f'{fitness:.4g}'
    cells = str(one['id']), str(one['generation']), one['operator']
    lines.append([*cells, parents or '-', shown])
  left = len(ancestors) - _ANCESTORS
  more = [f'{left} elder ancestors are left out.'] if left > 0 else []
  return ['## Lineage', report.aligned(lines), *more]


def _data(run: rows.Run) -> list[str]:
  lines = [['', 'fingerprint']]
  summary = run.summary or {'rows': [{'dev': {'tasks': ()}}]}
  names, count = run.files.expert_names, len(run.files.adapters)
  named = {
    'adapters': names[:count],
    'experts': names[count:],
    'tasks': tuple(summary['rows'][0]['dev']['tasks']),
  }
  for what, value in run.inputs.items():
    for i, one in enumerate([value] if isinstance(value, str) else value):
      if isinstance(one, str):
        name = f' {named[what][i]}' if i < len(named.get(what, ())) else ''
        lines.append([f'{what}{name}', one])
  return ['## Data', report.aligned(lines)]


def licence(model: pathlib.Path) -> dict[str, str]:
  """Returns the fields of the licence in the model card of a base."""
  path = existing_folder(model, 'a model folder') / 'README.md'
  if not path.is_file():
    return {}
  card = path.read_text(encoding='utf-8', errors='replace')[:20_000]
  _, start, rest = card.partition('---\n')
  front = rest.partition('\n---')[0] if start else ''
  return {key: value.strip('\'"') for key, value in _LICENCE.findall(front)}
