"""What every test runs under, and the fixtures that several packages share."""

import gc
from importlib import metadata
import os
import pathlib

_CACHE = pathlib.Path(__file__).resolve().parents[1] / '.cache'

# All of this must stand before jax is first imported. It goes through the
# environment so that the programs which some tests start inherit it.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUMPY_DTYPE_PROMOTION'] = 'strict'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE / 'jax'))
# Small programs as well: every run of every test compiles hundreds of them.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Most of the time goes into compiling programs that run once: LLVM's
# optimisations are left out, and XLA's kernels come from its plain emitters.
# XLA's own passes stay. A program is not cut into parts that are compiled side
# by side: the other core has tests of its own. A jaxlib that does not know a
# flag would end the process.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['XLA_FLAGS'] = '--xla_cpu_parallel_codegen_split_count=1'
if metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# Tracing makes so many objects that looking for cycles among them took a fifth
# of the time. All of it is looked through where programs are given up.
gc.set_threshold(100_000, 20, 10)
# No test may reach for the network.
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TRANSFORMERS_OFFLINE'] = '1'
os.environ['TRANSFORMERS_NO_ADVISORY_WARNINGS'] = '1'
# The tokenizers' threads do not survive a fork; two cores have no use for them.
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
os.environ['MPLBACKEND'] = 'Agg'

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import tiny  # noqa: E402

# Compiled in this process since it last gave up all, and how many it may keep.
_programs, _MOST_PROGRAMS = 0, 500

# Only in this process: a program started by a test sees one device, as it does
# on a user's machine.
jax.config.update('jax_num_cpu_devices', 4)


def pytest_collection_finish():
  """What all tests share is not searched for garbage again."""
  gc.collect()
  gc.freeze()


def _count_programs(event, seconds, **_):
  global _programs
  _programs += event == '/jax/core/compile/backend_compile_duration'


jax.monitoring.register_event_duration_secs_listener(_count_programs)


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Gives up what was compiled once that fills memory, a megabyte a program.

  Until then it serves the files that follow, which have much in common.
  """
  global _programs
  yield
  if _programs > _MOST_PROGRAMS:
    jax.clear_caches()
    gc.collect()
    _programs = 0


@pytest.fixture(scope='session', autouse=True)
def no_fine_tuning():
  """Leaves the baseline that learns out of runs: it compiles for seconds.

  Its own tests put it back.
  """
  from evojax_llm.runs import fine_tuning

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(fine_tuning, 'wanted', lambda config: False)
    yield patch


@pytest.fixture(scope='session', autouse=True)
def small_pictures():
  """Draws the picture that ends each run with a fifth of its dots a side."""
  from matplotlib.figure import Figure

  save = Figure.savefig

  def small(self, path, dpi):
    save(self, path, dpi=dpi / 5)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Figure, 'savefig', small)
    yield


@pytest.fixture(scope='session')
def data_folder() -> pathlib.Path:
  """The folder of real task files, or a skip where there is none.

  The files are not part of the repository. EVOJAX_LLM_DATA names their folder;
  without it `../shared/data` beside the clone is taken.
  """
  default = _CACHE.parents[1] / 'shared' / 'data'
  folder = pathlib.Path(os.environ.get('EVOJAX_LLM_DATA', default))
  if not (folder / 'mmlu.json').is_file():
    pytest.skip(
      f'no task files in {folder}; set EVOJAX_LLM_DATA to a folder with '
      'mmlu.json, gsm8k.json, ... in the Model Swarms layout'
    )
  return folder


@pytest.fixture(scope='session')
def tiny_gemma_folder(tmp_path_factory):
  """`tiny_gemma_folder(model_type, **options) -> folder`, built once each.

  The folder is shared by all tests of the session: read it, never write to it.
  Options are those of `tests.tiny.write_gemma`.
  """
  built = {}

  def build(model_type: str = 'gemma2', **options) -> pathlib.Path:
    key = (model_type, repr(sorted(options.items())))
    if key not in built:
      folder = tmp_path_factory.mktemp(model_type)
      built[key] = tiny.write_gemma(folder, model_type, **options)
    return built[key]

  return build


@pytest.fixture(scope='session')
def tiny_adapter_folders(tmp_path_factory, tiny_gemma_folder):
  """`tiny_adapter_folders(count, model_type, **options) -> [folder, ...]`.

  Adapters of the default folder that `tiny_gemma_folder(model_type)` builds.
  Options are those of `tests.tiny.write_adapter`.
  """
  built = {}

  def build(
    count: int = 3, model_type: str = 'gemma2', **options
  ) -> list[pathlib.Path]:
    key = (count, model_type, repr(sorted(options.items())))
    if key not in built:
      base = tiny_gemma_folder(model_type)
      root = tmp_path_factory.mktemp(f'{model_type}-adapters')
      built[key] = [
        tiny.write_adapter(root / f'expert{i}', base, seed=i, **options)
        for i in range(count)
      ]
    return built[key]

  return build


@pytest.fixture(scope='session')
def settings(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  """Flags of a small run of the evolve program, without --workdir."""
  from tests.experiments import runs

  folder = tmp_path_factory.mktemp('tasks')
  tasks = [
    runs.write_task(folder / f'{n}.json', seed=i) for i, n in enumerate('ab')
  ]
  adapters = tiny_adapter_folders(
    3, 'gemma2', alpha=32, modules=tiny.FEW_MODULES
  )
  return [
    f'--config={runs.GENOME}',
    f'--config.model={tiny_gemma_folder("gemma2")}',
    f'--config.adapters={",".join(map(str, adapters))}',
    f'--config.tasks={",".join(map(str, tasks))}',
    '--config.strategy.population=5',
    '--config.strategy.generations=4',
  ]


@pytest.fixture(scope='module')
def shared_reading():
  """Runs of a file read and compile once what they have in common."""
  from tests.experiments import runs

  with pytest.MonkeyPatch.context() as patch:
    runs.share_what_is_read(patch)
    yield


@pytest.fixture(scope='session')
def finished(settings, tmp_path_factory):
  """(folder of a finished run, the calls of its evaluator)."""
  from evojax_llm.fitness.evaluator import Evaluator
  from tests.experiments import runs

  folder = tmp_path_factory.mktemp('finished') / 'run'
  calls = []
  evaluate = Evaluator.evaluate

  def spy(self, space, population, members=None, split='dev', progress=None):
    calls.append((split, None if members is None else len(members)))
    return evaluate(self, space, population, members, split, progress)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Evaluator, 'evaluate', spy)
    assert runs.evolve(settings, folder) is None
  return folder, calls
