"""Population-based evolution of language models in JAX, without gradients.

The public names are imported when they are asked for, so that `import
evojax_llm` costs nothing:

    import evojax_llm as ev

    space = ev.make_space('adapters', 'gemma-2-2b-it', ['code', 'cot'])
    strategy = ev.make_strategy('genome_plus', 10, space)
    for state, generation in ev.evolve(strategy, space, my_score):
      print(generation.best_fitness)

The types that these functions take and return are on one page, `types`.
"""

from evojax_llm.lookup import public_names as _public_names

__version__ = '0.1.0'

_PUBLIC = {
  # Models and experts.
  'load_model': 'evojax_llm.models.hub:load_model',
  'Tokenizer': 'evojax_llm.models.tokenizer:Tokenizer',
  'load_adapters': 'evojax_llm.models.peft:load_adapters',
  'save_adapter': 'evojax_llm.models.peft:save_adapter',
  'save_checkpoint': 'evojax_llm.models.hub:save_checkpoint',
  # Genomes.
  'make_space': 'evojax_llm.genomes.space:make_space',
  'AdapterSpace': 'evojax_llm.genomes.adapters:AdapterSpace',
  'GateSpace': 'evojax_llm.genomes.gates:GateSpace',
  'WeightSpace': 'evojax_llm.genomes.weights:WeightSpace',
  'stack': 'evojax_llm.population.stack:stack',
  'take': 'evojax_llm.population.stack:take',
  # Fitness.
  'load_tasks': 'evojax_llm.tasks.task_files:load_tasks',
  'Evaluator': 'evojax_llm.fitness.evaluator:Evaluator',
  'generate_texts': 'evojax_llm.engine.generation:generate_texts',
  'Runtime': 'evojax_llm.engine.runtime:Runtime',
  'Sampling': 'evojax_llm.engine.sampling:Sampling',
  # Searches.
  'make_strategy': 'evojax_llm.strategies.registry:make_strategy',
  'strategy_names': 'evojax_llm.strategies.registry:strategy_names',
  'as_evosax': 'evojax_llm.strategies.evosax:as_evosax',
  'evolve': 'evojax_llm.runs.evolution:evolve',
  # Runs.
  'run': 'evojax_llm.runs.launch:run',
  'sweep': 'evojax_llm.runs.sweeps:sweep',
  # Types.
  'Model': 'evojax_llm.types:Model',
  'Space': 'evojax_llm.types:Space',
  'Strategy': 'evojax_llm.types:Strategy',
  'Scores': 'evojax_llm.types:Scores',
  'Evaluation': 'evojax_llm.types:Evaluation',
  'Member': 'evojax_llm.types:Member',
  'RunConfig': 'evojax_llm.types:RunConfig',
  # Packages of many names.
  'operators': 'evojax_llm.operators',
  'pocket': 'evojax_llm.pocket',
  'types': 'evojax_llm.types',
}
__all__ = sorted(_PUBLIC)
__getattr__, __dir__ = _public_names(__name__, _PUBLIC)
