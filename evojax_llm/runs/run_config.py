"""What every run configures."""

from ml_collections import config_dict


def make() -> config_dict.ConfigDict:
  """What every experiment configures alike."""
  config = config_dict.ConfigDict()
  # Part of the run folder's name.
  config.name = ''
  config.seed = 0
  # So many runs, of this seed and those that follow, in one launch.
  config.seeds = 1

  # A Hugging Face Gemma folder and PEFT adapter folders of it, the experts,
  # separated by commas. '' is the pocket model and its own experts.
  config.model = ''
  config.adapters = ''
  # Models tuned from it, in the same form; for the space 'weights'.
  config.experts = ''
  # Task files, or names of pocket tasks, or a pocket stage, separated by
  # commas; 'file.py:Name' and 'lm_eval:name' as well.
  config.tasks = 'main'
  # Tasks that the search never sees: their test items are scored at the end.
  config.heldout_tasks = ''
  # Of the tasks in the fitness; () for equal ones.
  config.weights = ()
  # What makes fitness of the tasks' scores: see evojax_llm.fitness.objectives.
  config.objective = 'weighted_mean'
  # Items of each task that the search sees, and a seed that chooses them.
  config.dev_limit = config_dict.placeholder(int)
  config.dev_draw = 0
  # Other dev items in every generation, of which dev_limit says how many; who
  # lives on is scored again on them. Needs a limit to choose by.
  config.resample = False
  config.test_limit = config_dict.placeholder(int)
  # The same, one number for each task; () for those above.
  config.dev_limits = ()
  config.test_limits = ()
  config.allow_overlap = False
  # Run generated code, in a process with limits, where a task asks for it.
  config.allow_code = False
  # Worked examples before each question, from dev items that are then not
  # scored, and a text before everything; as the tasks say where nothing is set.
  config.shots = config_dict.placeholder(int)
  config.shots_seed = config_dict.placeholder(int)
  config.system = config_dict.placeholder(str)
  # Put prompts through the model's chat template.
  config.chat = False

  # 'adapters' evolves LoRA factors, 'gates' the weights of experts,
  # 'weights' all parameters of models.
  config.space = 'adapters'
  # Recipes of evojax_llm.genomes.initial, in order; the last one fills up.
  config.initial = ('experts', 'zero', 'scaled_average', 'extrapolants')

  # Folder of a finished run, whose best members then come first.
  config.warm_start = ''

  # The best members vote in the end: at most so many, 0 for no vote. dev says
  # how many; see evojax_llm.fitness.ensembles for rules other than 'auto'.
  config.ensemble = config_dict.ConfigDict({'size': 5, 'rule': 'auto'})
  # Read all experts on test, not only those that are in the table.
  config.test_experts = False

  # Members are stopped when they can no longer matter (see fitness.racing):
  # 'paired' or 'halving', or '' to score all of them on everything.
  config.racing = config_dict.ConfigDict(
    {'rule': '', 'rounds': 3, 'keep': 1, 'z': 2.0}
  )

  # How programs run, which changes no result but for rounding.
  config.execution = config_dict.ConfigDict(
    {
      'dtype': 'float32',
      # 'int8' for eight-bit kernels of the base; what it changes is reported.
      'base_dtype': config_dict.placeholder(str),
      'form': 'auto',
      'members_per_group': config_dict.placeholder(int),
      'prompts_per_batch': config_dict.placeholder(int),
      'memory_budget_gib': config_dict.placeholder(float),
      'max_length': config_dict.placeholder(int),
    }
  )
  return config
