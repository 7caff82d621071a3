"""What evosax's algorithms can be told, by name, without importing evosax.

Numbers of their `default_params` and of their constructors. All that has a
first standard deviation has it as `sigma`, whatever evosax calls it, and all
that has an optimiser has `optimizer` (a name of optax) and `learning_rate`.
Functions (`sampling_fn`, `fitness_shaping_fn`, ...) can be given from Python
alone. What is not set is as evosax has it.
"""

from collections.abc import Mapping

from evojax_llm.options import Option

_TEXTS = {
  'sigma': 'first standard deviation; that of the experts if unset',
  'optimizer': 'name of an optimiser of optax',
  'learning_rate': 'of that optimiser, or of Adam',
}


def _table(floats='', *, sigma=True, optimizer=False, **others):
  kinds: dict[str, type] = {'sigma': float} if sigma else {}
  if optimizer:
    kinds |= {'optimizer': str, 'learning_rate': float}
  kinds |= dict.fromkeys(floats.split(), float) | others
  return {
    name: Option(name, None, _TEXTS.get(name, "evosax's own"), kind=kind)
    for name, kind in kinds.items()
  }


_CMA = 'std_min std_max mu_eff c_mean c_std d_std c_c c_1 c_mu chi_n'
_AMALGAM = (
  'eta_std eta_shift eta_avs_inc eta_avs_dec delta_ams theta_sdr c_mult_init'
)

# Searches that every system is to beat; see `strategies.evosax`.
SEARCHES: Mapping[str, Mapping[str, Option]] = {
  'cma_es': {
    'sigma': Option('sigma', 0.3, 'first standard deviation', low=0.0)
  },
  'mixed_cma_es': {
    'sigma': Option('sigma', 0.1, 'first standard deviation', low=0.0),
    'margin': Option(
      'margin',
      None,
      'least probability that a member turns a binary gene; 1 / (n population)',
      low=1e-12,
      high=0.5,
    ),
  },
  'lorahub': {
    'sigma': Option('sigma', 0.5, 'first standard deviation', low=0.0),
    'l1': Option(
      'l1',
      0.05,
      'times the size of the weights: what the search sees fitness less',
      low=0.0,
    ),
    'penalty': Option(
      'penalty',
      'sum',
      "the size: the 'sum' of |w| as in the paper, or the 'mean', as in code",
      choices=('sum', 'mean'),
      kind=str,
    ),
    'bound': Option(
      'bound', 1.5, 'weights are cut to -bound and bound', low=0.0
    ),
    'start': Option(
      'start',
      'zero',
      "first mean: 'zero', or the 'best' initial member",
      choices=('zero', 'best'),
      kind=str,
    ),
  },
  'random_search': {
    'concentration': Option(
      'concentration', 1.0, 'of the Dirichlet mix of the experts', low=0.0
    ),
    'low': Option('low', 0.0, 'the mass of the mix is U(low, high)'),
    'high': Option('high', 4.0, 'see low'),
  },
}
# By evosax's key.
ALGORITHMS: Mapping[str, Mapping[str, Option]] = {
  'ARS': _table(optimizer=True),
  'ASEBO': _table('grad_decay', optimizer=True, subspace_dims=int),
  'CMA_ES': _table(_CMA),
  'CMAAnchoredLES': _table(),
  'CR_FM_NES': _table(
    'mu_eff c_std c_c c1 chi_n h_inv alpha_dist lr_mean lr_move_std '
    'lr_stag_std lr_conv_std lr_B'
  ),
  'DES': _table('lr_std', optimizer=True),
  'DifferentialEvolution': _table(
    'crossover_rate differential_weight differential_weight_min '
    'differential_weight_max',
    sigma=False,
    elitism=bool,
    num_diff=int,
  ),
  'DiffusionEvolution': _table(
    'std_m scale_factor', sigma=False, num_generations=int, num_latent_dims=int
  ),
  'ESMC': _table(optimizer=True),
  'GESMR_GA': _table('std_min std_max std_meta', num_groups=int),
  'GradientlessDescent': _table(
    'radius_min radius_max radius_decay', sigma=False
  ),
  'GuidedES': _table('alpha beta', optimizer=True, subspace_dims=int),
  'HillClimbing': _table(),
  'LES': _table(),
  'LGA': _table('crossover_rate'),
  'LM_MA_ES': _table(
    'std_min std_max mu_eff c_mean c_std d_std c_1 c_mu chi_n'
  ),
  'MA_ES': _table(_CMA),
  'MR15_GA': _table('std_min std_max std_ratio'),
  'NoiseReuseES': _table(optimizer=True, T=int, K=int),
  'Open_ES': _table(optimizer=True, use_antithetic_sampling=bool),
  'PGPE': _table('std_lr std_max_change', optimizer=True),
  'PSO': _table('inertia_coeff cognitive_coeff social_coeff', sigma=False),
  'PersistentES': _table(optimizer=True, T=int, K=int),
  'RandomSearch': _table(sigma=False),
  'Rm_ES': _table(f'{_CMA} q_star', T=int, m=int),
  'SAMR_GA': _table('std_min std_max std_meta std_best_limit'),
  'SNES': _table('lr_std_init', optimizer=True),
  'Sep_CMA_ES': _table(_CMA),
  'SimpleES': _table('c_std', optimizer=True),
  'SimpleGA': _table('crossover_rate'),
  'SimulatedAnnealing': _table(
    'temperature_init temperature_limit temperature_decay boltzmann_constant'
  ),
  'iAMaLGaM_Full': _table(_AMALGAM, nis_max_gens=int),
  'iAMaLGaM_Univariate': _table(_AMALGAM, nis_max_gens=int),
  'xNES': _table('lr_std_init lr_B', optimizer=True),
}
