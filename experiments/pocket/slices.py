"""Who learns what: the base's mixture, the experts' slices and the stages.

The rule, fixed before any evolution was run:

* The base sees *common* families often and *rare* ones seldom, so that it ends
  fully annealed, good at the former and half-way on the latter.
* Every rare family belongs to exactly two of the ten experts.
* A stage of rare families is a column of `RARE`: no expert owns two families
  of one column, so no expert can be good at all of a stage.
* Chains are trained for some ordered pairs of atoms only; `CHAIN_HELD_OUT` and
  `PROMPT_HELD_OUT` are prompts that neither the base nor any expert ever saw.
"""

COMMON = (
  'rev',
  'shf',
  'dwn',
  'rot',
  'upc',
  'dbl',
  'nth',
  'kv',
  'cat',
  'bal',
  'cmp',
  'vow',
)
RARE = {
  'main': ('sor', 'zip', 'dup', 'exp'),
  'mixed': ('del', 'max', 'atb', 'top'),
  'second': ('swp', 'run', 'com', 'cnt'),
  'third': ('evn', 'pal', 'ded', 'pad'),
}
# Per column: the two owners of each of its four families.
OWNERS = {
  'main': ((0, 1), (2, 3), (4, 5), (6, 7)),
  'mixed': ((8, 2), (9, 4), (3, 6), (5, 7)),
  'second': ((4, 6), (1, 9), (0, 8), (7, 5)),
  'third': ((9, 0), (1, 8), (2, 6), (3, 7)),
}
# Chains seen in training: all pairs of common atoms, and each rare atom with
# two of them; no pair of rare atoms.
CHAINS = (
  *(
    f'{a}.{b}'
    for a in ('rev', 'shf', 'dwn', 'rot')
    for b in ('rev', 'shf', 'dwn', 'rot')
    if a != b
  ),
  *(
    pair
    for rare, two in {
      'sor': ('rev', 'shf'),
      'swp': ('rot', 'dwn'),
      'atb': ('rev', 'rot'),
    }.items()
    for other in two
    for pair in (f'{rare}.{other}', f'{other}.{rare}')
  ),
)
CHAIN_HELD_OUT = ('sor.swp', 'swp.sor', 'atb.sor', 'swp.atb')
SUFFIX = (
  'rev_',
  'shf_',
  'rot_',
  'dwn_',
  'dbl_',
  'kv_',
  'nth_',
  'upc_',
  'cat_',
  'vow_',
  'pad_',
  'swp_',
)
# Known functions under a prompt form that no expert was trained on: one family
# of each column, none of them sharing an owner with another.
PROMPT_HELD_OUT = ('zip-new', 'top-new', 'swp-new', 'evn-new')

CONTROL = 'rev'

# Seldom enough that the finished base is half-way on each of them.
_RARE_WEIGHTS = {
  'sor': 0.12,
  'zip': 0.12,
  'dup': 0.12,
  'exp': 0.12,
  'del': 0.4,
  'max': 0.2,
  'atb': 0.06,
  'top': 0.08,
  'swp': 0.12,
  'run': 0.3,
  'com': 0.3,
  'cnt': 0.4,
  'evn': 0.25,
  'pal': 0.4,
  'ded': 0.2,
  'pad': 0.06,
}
BASE_WEIGHTS = {
  **dict.fromkeys(COMMON, 1.0),
  **_RARE_WEIGHTS,
  **dict.fromkeys(CHAINS, 0.12),
  **dict.fromkeys(SUFFIX, 0.2),
}
# Part of an expert's practice that is general: keeps what the base can do.
_GENERAL = 0.2

NUM_EXPERTS = 10
# Of these slices there is a dense expert as well: each knows one family of the
# stage `main`, and no two know the same of any stage.
DENSE = (0, 2, 4, 7)


def expert_slices() -> dict[str, tuple[str, ...]]:
  """The families of each expert, by expert name.

  Beside its rare families, an expert practises the chains that contain one of
  them, and one common family in both word orders.
  """
  slices = {}
  for e in range(NUM_EXPERTS):
    own = [
      family
      for column, families in RARE.items()
      for family, owners in zip(families, OWNERS[column], strict=True)
      if e in owners
    ]
    chains = [c for c in CHAINS if set(c.split('.')) & set(own)]
    extra = SUFFIX[e % len(SUFFIX)]
    slices[f'{e:02d}_' + '_'.join(own)] = (*own, *chains, extra)
  return slices


def dense_slices() -> dict[str, tuple[str, ...]]:
  """The families of each dense expert, by its name."""
  slices = list(expert_slices().items())
  return {f'dense_{slices[e][0]}': slices[e][1] for e in DENSE}


def stages() -> dict[str, tuple[str, ...]]:
  """Task names of each stage, by stage name."""
  return {
    **RARE,
    'chain': CHAIN_HELD_OUT,
    'prompt': PROMPT_HELD_OUT,
    'control': (CONTROL,),
  }


def task_families() -> tuple[str, ...]:
  """The families that get a task file."""
  rare = tuple(f for column in RARE.values() for f in column)
  return (*COMMON, *rare, *CHAIN_HELD_OUT, *PROMPT_HELD_OUT)


def expert_weights(own: tuple[str, ...]) -> dict[str, float]:
  """How often an expert practises each family: its own, then common ones."""
  weights = {f: 0.1 if '.' in f or f.endswith('_') else 1.0 for f in own}
  general = _GENERAL / (1 - _GENERAL) * sum(weights.values()) / len(COMMON)
  for family in COMMON:
    weights[family] = weights.get(family, 0.0) + general
  return weights
