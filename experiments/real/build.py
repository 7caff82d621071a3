r"""Trains experts of a real model: adapters, each on a part of task files.

  pip install 'evojax-llm[gemma-270m]'
  python -m experiments.real.build --data=FOLDER --out=runs/real

Reads the task files (*.json) of --data, or those of --tasks, and parts their
items in three: what experts learn from, and the dev and test that a search may
have. Writes

  experts/NAME/   PEFT adapters of rank 8
  tasks/NAME.json the dev and the test of each task
  split.json      which item is in which part
  experts.json    what each expert was trained on, losses, seconds, machine
  NOTICE          what the licence of the model asks to be passed on

A build that was stopped goes on when the same command is given again.
"""

from collections.abc import Sequence
import pathlib
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp

from evojax_llm.commands import command
from evojax_llm.models import hub
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.runs import recorded_inputs
from evojax_llm.tasks import training_data
from experiments.benchmarks import tables
from experiments.real import parts
from experiments.real import sources
from experiments.real import training

_OUT = flags.DEFINE_string('out', 'runs/real', 'Folder to write.')
_MODEL = flags.DEFINE_string(
  'model',
  'gemma-270m',
  f'{" or ".join(sources.PACKAGES)}, a GGUF file, or a model folder.',
)
_DATA = flags.DEFINE_string(
  'data', None, 'Folder of task files.', required=True
)
_TASKS = flags.DEFINE_list(
  'tasks', None, 'Files or their names, such as mmlu,gsm8k; all of --data.'
)
_EXPERTS = flags.DEFINE_integer('experts', 10, 'Experts to train.', 1)
_RANK = flags.DEFINE_integer('rank', 8, 'R of the adapters.', 1)
_RATE = flags.DEFINE_float('lr', 1e-3, 'Peak learning rate.', 0.0)
_EPOCHS = flags.DEFINE_integer('epochs', 3, 'Times that rows are read.', 1)
_STEP_TOKENS = flags.DEFINE_integer(
  'step_tokens', None, 'Positions of a step; 1024 on a CPU, else 8192.', 1
)
_TOKENS = flags.DEFINE_integer(
  'tokens',
  None,
  'Positions that an expert reads at most; 32768 on a CPU, else 262144.',
  1,
)
_LENGTH = flags.DEFINE_integer('max_length', 640, 'Longest row in tokens.', 8)
_MINUTES = flags.DEFINE_float(
  'minutes', 60.0, 'At most, for the steps of all experts.', 0.0
)
_SAVE_SECONDS = flags.DEFINE_float(
  'save_seconds', 60.0, 'From one state to the next.', 0.0
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  'Of the model and its activations; float32 on a CPU, else bfloat16.',
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of parts, factors and orders.', 0)


def main(_: Sequence[str]) -> None:
  command.say(f'reading {_MODEL.value} and the task files of {_DATA.value}')
  model_file = sources.find(_MODEL.value)
  files = parts.find(_DATA.value, _TASKS.value or ())
  out = pathlib.Path(_OUT.value).expanduser()
  known = _begin(out, model_file, files)
  tasks = parts.write(out, files, _SEED.value)
  shared = parts.share_out(tasks, _EXPERTS.value)
  sources.write_terms(out, _MODEL.value, model_file)

  on_cpu = jax.default_backend() == 'cpu'
  dtype = jnp.dtype(_DTYPE.value or ('float32' if on_cpu else 'bfloat16'))
  recipe = _recipe(on_cpu)
  tokenizer = Tokenizer.from_folder(model_file)
  lessons = {}
  command.say(f'encoding the rows of {len(shared)} experts')
  for name, (task, items) in shared.items():
    rows = training_data.encode_task(tasks[task], items, tokenizer)
    found = training.lesson(rows, recipe, tokenizer.pad_id) if rows else None
    if found is None:
      raise command.UserError(
        f'{task}: has no rows to learn from of {recipe.max_length} tokens at '
        'most; leave it out of --tasks, or allow more with --max_length.'
      )
    lessons[name] = found

  start = time.monotonic()
  command.say(f'reading the parameters of {model_file.name}')
  config, params = hub.load_checkpoint(model_file, dtype)
  command.say(
    f'{model_file.name}: {config.num_params:,} parameters, read in '
    f'{time.monotonic() - start:.1f} s; {len(lessons)} experts'
  )
  model = hub.Model(config, params, model_file)
  trainer = training.Trainer(model, recipe, dtype)
  for number, (name, lesson) in enumerate(lessons.items()):
    if name in known['experts']:
      continue
    spent = sum(e['seconds'] for e in known['experts'].values())
    seconds = (60 * _MINUTES.value - spent) / (len(lessons) - number)
    state = out / 'unfinished' / f'{name}.npz'
    try:
      factors, said = trainer.train(
        name,
        number,
        lesson,
        state,
        seconds=max(1.0, seconds),
        save_seconds=_SAVE_SECONDS.value,
        say=command.say,
      )
    except KeyboardInterrupt:
      command.say(f'{name} is unfinished; the same command goes on with it')
      raise
    folder = out / 'experts' / name
    if not folder.exists():  # There where a build ended before it was noted.
      trainer.save(folder, factors)
    (folder / 'NOTICE').write_text((out / 'NOTICE').read_text())
    known['experts'][name] = {'task': shared[name][0], **said}
    parts.write_json(out / 'experts.json', known)
    state.unlink(missing_ok=True)
  state = out / 'unfinished'
  if state.is_dir() and not any(state.iterdir()):
    state.rmdir()
  spent = sum(e['seconds'] for e in known['experts'].values())
  command.say(
    f'wrote {len(lessons)} experts to {out} in {spent:.0f} s of steps'
  )
  print(_table(known['experts']))


def _recipe(on_cpu: bool) -> training.Recipe:
  """How experts learn; where compiling costs more than padding, few lengths."""
  longest = _LENGTH.value
  lengths = range(32, longest, 32) if on_cpu else [192]
  reads = (4, 16, 64) if on_cpu else (80,)
  return training.Recipe(
    rank=_RANK.value,
    lr=_RATE.value,
    step_tokens=_STEP_TOKENS.value or (1024 if on_cpu else 8192),
    tokens=_TOKENS.value or (1 << 15 if on_cpu else 1 << 18),
    epochs=_EPOCHS.value,
    max_length=longest,
    lengths=(*(n for n in lengths if n < longest), longest),
    reads=reads,
    seed=_SEED.value,
  )


def _begin(
  out: pathlib.Path, model: pathlib.Path, files: Sequence[pathlib.Path]
) -> dict[str, Any]:
  """What experts.json of a build holds that begins or goes on.

  Raises:
    UserError: the folder is of a build with other settings.
  """
  settings = {
    'model': recorded_inputs.fingerprint(model),
    'tasks': {path.name: recorded_inputs.fingerprint(path) for path in files},
    'platform': jax.default_backend(),
  }
  for flag in (
    *(_EXPERTS, _RANK, _RATE, _EPOCHS, _STEP_TOKENS, _TOKENS, _LENGTH),
    *(_DTYPE, _SEED),
  ):
    settings[flag.name] = flag.value
  if (out / 'experts.json').is_file():
    known = parts.read_experts(out)
    for name, value in settings.items():
      if known['settings'].get(name) != value:
        raise command.UserError(
          f'--out={out} is of a build with {name} '
          f'{known["settings"].get(name)!r}, here {value!r}; give the same, or '
          'another folder.'
        )
    return known
  if out.is_dir() and any(out.iterdir()):
    raise command.UserError(
      f'--out={out} is not empty and of no build; give another folder.'
    )
  out.mkdir(parents=True, exist_ok=True)
  device = jax.devices()[0]
  known = {
    'model': str(model),
    'settings': settings,
    'machine': {
      'device': f'{device.platform} {device.device_kind}',
      **tables.machine(),
    },
    'experts': {},
  }
  parts.write_json(out / 'experts.json', known)
  return known


def _table(experts: dict[str, Any]) -> str:
  lines = ['expert | rows | steps | tokens | loss | seconds', '--- | ' * 6]
  lines += [
    f'{name} | {e["rows"]} | {e["steps"]} | {e["tokens"]:,} | '
    f'{e["first loss"]:.3f} to {e["last loss"]:.3f} | {e["seconds"]:.0f}'
    for name, e in experts.items()
  ]
  return '\n'.join(lines)


if __name__ == '__main__':
  jax.config.update('jax_numpy_dtype_promotion', 'strict')
  command.launch(main)
