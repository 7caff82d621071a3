"""The types that everything speaks in, on one page.

A *genome* is one member's pytree; a *population* is the same tree with a
leading axis P. Both are plain pytrees of arrays, without a class of their own.

Model        configuration and parameters that all members of a space share
Space        what a genome is: made, sampled, expressed as a model, exported
Expression   what tells a member from the model: LowRank, Gates, Weights, Path
Strategy     a search: init, ask, tell
Scores       of M members, as a strategy sees them: fitness (M,), tasks (M, K),
             items (M, I); all maximised, NaN where a member failed
Evaluation   the same with all that was scored item by item, as an Evaluator
             returns it
Member       one member with its genome, id, fitness and generation of birth
Generation   what one ask-score-tell round did, for records
RunState     all that a run needs to go on; a pytree
RunConfig    the settings of a run
"""

from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.genomes.space import Space
from evojax_llm.models.expression import Expression
from evojax_llm.models.hub import Model
from evojax_llm.runs.evolution import Generation
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.runs.run_state import Member
from evojax_llm.runs.run_state import RunState
from evojax_llm.strategies.base import Scores
from evojax_llm.strategies.base import Strategy

__all__ = [
  'Evaluation',
  'Expression',
  'Generation',
  'Member',
  'Model',
  'RunConfig',
  'RunState',
  'Scores',
  'Space',
  'Strategy',
]
