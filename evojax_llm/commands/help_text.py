"""What --help shows: a command's flags, its settings, systems and presets."""

from collections.abc import Iterator
import dataclasses
import shutil
import sys
import textwrap
from typing import Any

from absl import flags
from ml_collections import config_dict

from evojax_llm import lookup
from evojax_llm import options
from evojax_llm import systems
from evojax_llm.commands import command
from evojax_llm.runs import run_config
from evojax_llm.strategies import registry

# Where the names are that a setting may have.
_NAMES = {
  'config.ensemble.rule': 'evojax_llm.fitness.ensembles:RULES',
  'config.initial': 'evojax_llm.genomes.initial:RECIPES',
  'config.objective': 'evojax_llm.fitness.objectives:OBJECTIVES',
  'config.space': 'evojax_llm.genomes.space:SPACES',
  'config.strategy.name': 'evojax_llm.strategies.registry:STRATEGIES',
}


def describe(main: Any, word: str = '') -> str:
  """Returns the help of a command.

  Args:
    main: of the command; the docstring of its module comes first.
    word: only flags, settings and presets with it are shown, if there is one.
  """
  known = command.own_flags()
  sections = {'Flags:': _flags(known)}
  if 'setting' in known:
    config = systems.load(systems.DEFAULT)
    title = f'Settings, with the values of --config={systems.DEFAULT}:'
    sections[title] = [
      *_settings(run_config.RunConfig, config, 'config.'),
      *_options(config.strategy),
    ]
    sections['Systems and their presets, for --config=NAME:'] = _systems()
  lines = [] if word else [sys.modules[main.__module__].__doc__.rstrip()]
  for title, entries in sections.items():
    shown = [one for one in map(_entry, entries) if word.lower() in one.lower()]
    if shown:
      lines += ['', title, *shown]
  if not lines:
    return f'Nothing in the flags, settings and presets has {word!r} in it.'
  if not word and 'setting' in known:
    lines += ['', '--help=WORD shows the lines with a word alone.']
  return '\n'.join(lines).lstrip('\n')


def _entry(parts: tuple[str, str]) -> str:
  head, text = parts
  return textwrap.fill(
    f'{head:<34}  {text}',
    max(60, shutil.get_terminal_size().columns - 1),
    initial_indent='  ',
    subsequent_indent=' ' * 8,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _flags(known: dict[str, flags.Flag]) -> Iterator[tuple[str, str]]:
  for name, flag in known.items():
    if name != 'setting':
      value = '' if flag.default is None else f'={flag.default_as_str[1:-1]}'
      yield f'--{name}{value}', ' '.join(flag.help.split())


def _settings(
  part: type, config: config_dict.ConfigDict, path: str
) -> Iterator[tuple[str, str]]:
  for name, known in options.declared(part).items():
    if path + name != 'config.strategy.options':
      yield _setting(known, config[name], path)
  for field in dataclasses.fields(part):
    if 'option' not in field.metadata:
      inner = f'{path}{field.name}.'
      yield from _settings(type(field.default), config[field.name], inner)


def _options(strategy: config_dict.ConfigDict) -> Iterator[tuple[str, str]]:
  for name, known in registry.options(strategy.name).items():
    path = 'config.strategy.options.'
    if known.parts:
      names = ', '.join(f'{name}.{part}' for part in known.parts)
      yield f'--{path}{name}', f'{known.text}: {names}'
    else:
      yield _setting(known, strategy.options[name], path)


def _setting(known: options.Option, value: Any, path: str) -> tuple[str, str]:
  name = path + known.name
  allowed = known.allowed or known.kind.__name__
  if name in _NAMES:
    allowed = ', '.join(lookup.load(_NAMES[name], name))
  return f'--{name}={value}', f'{known.text} ({allowed})'


def _systems() -> Iterator[tuple[str, str]]:
  for name, module in systems.systems().items():
    title = module.__doc__.splitlines()[0]
    yield name, f'{title} Presets: {", ".join(module.PRESETS)}.'
