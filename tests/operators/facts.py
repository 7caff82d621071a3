"""What the property tests know of operators; an operator not named is none."""

# All else fixed, the child is linear in parents and base together.
LINEAR_IN_PARENTS = (
  'linear task_arithmetic passthrough extrapolate uniform_element '
  'uniform_matrix uniform_layer'
).split()
# Weights (1, 0, ...) give parent one.
CHOOSES = (
  'linear nuslerp multislerp karcher task_arithmetic ties magnitude_linear '
  'dare_linear dare_ties della_linear della breadcrumbs breadcrumbs_ties'
).split()
# Equal parents give that parent, with defaults.
IDEMPOTENT = (
  'linear slerp nuslerp multislerp karcher split_slerp passthrough extrapolate '
  'blx sbx uniform_element uniform_matrix uniform_layer ties della sce '
  'model_stock'
).split()
# How far jit may be from eager in f32, relative; 1e-6 for the others.
TOLERANCES = {'exact_linear': 1e-4, 'perturb': 1e-5, 'sbx': 1e-5}


def tolerance(operator) -> float:
  return TOLERANCES.get(operator.name, 1e-6)
