"""Builds a small vision population: a base that sees, two experts, tasks.

  python -m experiments.vision.build --out=/tmp/vision

A Gemma 3 with a tower of some thousand parameters is trained on pictures of one
thing; then its language part alone, once on colours and once on shapes. See
README.md beside this file.
"""

from collections.abc import Sequence
import functools
import pathlib
import time
from typing import Any

from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from evojax_llm.commands import command
from evojax_llm.models import hub
from evojax_llm.models import vision
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.transformer import Transformer
from experiments.pocket import folders
from experiments.pocket import tokenizer_files as tok
from experiments.pocket import train
from experiments.vision import pictures

_OUT = flags.DEFINE_string('out', None, 'A new folder.', required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of all data and weights.')
_STEPS = flags.DEFINE_integer('steps', 700, 'Steps of the base.')
_EXPERT_STEPS = flags.DEFINE_integer('expert_steps', 150, 'Steps, each.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Pictures a step.')
_NUM_DEV = flags.DEFINE_integer('num_dev', 100, 'Dev items a task.')
_NUM_TEST = flags.DEFINE_integer('num_test', 300, 'Test items a task.')

_TOKENS = ('<start_of_image>', '<end_of_image>', '<image_soft_token>')
_BEGIN, _END, _SOFT = range(tok.VOCAB_SIZE, tok.VOCAB_SIZE + 3)
_VOCAB = tok.VOCAB_SIZE + len(_TOKENS)
_COUNT = 4  # soft tokens of a picture
_LENGTH = 36  # of a row
_TOWER = {
  'model_type': 'siglip_vision_model',
  'hidden_size': 16,
  'intermediate_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'image_size': pictures.SIZE,
  'patch_size': 6,
  'vision_use_head': False,
}
# How often each question is asked.
_BASE = {'side': 0.5, 'colour': 0.2, 'shape': 0.2, 'both': 0.1}
_EXPERTS = {
  'colour': {'side': 0.1, 'colour': 0.9},
  'shape': {'side': 0.1, 'shape': 0.9},
}


def _config() -> dict[str, Any]:
  """config.json of a multimodal Gemma 3."""
  text = folders.base_config(4, 64, 160) | {
    'architectures': ['Gemma3ForCausalLM'],
    'model_type': 'gemma3_text',
    'vocab_size': _VOCAB,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
  }
  rope = text['rope_parameters']
  text['rope_parameters'] = dict.fromkeys(set(text['layer_types']), rope)
  return {
    'architectures': ['Gemma3ForConditionalGeneration'],
    'model_type': 'gemma3',
    'text_config': text,
    'vision_config': _TOWER,
    'mm_tokens_per_image': _COUNT,
    'boi_token_index': _BEGIN,
    'eoi_token_index': _END,
    'image_token_index': _SOFT,
    'dtype': 'bfloat16',
  }


def start(folder: pathlib.Path) -> tuple[ModelConfig, vision.VisionConfig]:
  """Writes all files of the base but its weights."""
  config = folders.start_base(folder, _config())
  tok.write(folder, _TOKENS)
  side = pictures.SIZE
  folders.write_json(
    folder / 'preprocessor_config.json',
    {
      'image_processor_type': 'Gemma3ImageProcessor',
      'size': {'height': side, 'width': side},
      'image_mean': [0.5] * 3,
      'image_std': [0.5] * 3,
      'image_seq_length': _COUNT,
    },
  )
  folders.write_json(
    folder / 'processor_config.json',
    {'processor_class': 'Gemma3Processor', 'image_seq_length': _COUNT},
  )
  return config, vision.load_vision_config(folder)[0]


def rows_of(rng: np.random.Generator, weights: dict[str, float], count: int):
  """A batch of pictures and questions, as `train.answer_loss` takes it."""
  tokens = np.full((count, _LENGTH), tok.PAD, np.int32)
  positions = np.full((count, _LENGTH), -1, np.int32)
  answer = np.zeros((count, _LENGTH - 1), np.float32)
  asked = rng.choice(list(weights), count, p=list(weights.values()))
  drawn = [pictures.draw(rng) for _ in range(count)]
  gap = tok.encode('\n\n')
  for row, (picture, question) in enumerate(zip(drawn, asked, strict=True)):
    soft = _VOCAB + row * _COUNT + np.arange(_COUNT)
    given = [tok.BOS, *gap, _BEGIN, *soft, _END, *gap]
    given += tok.encode(f'{question}=')
    whole = [*given, *tok.encode(picture.answer(question)), tok.EOS]
    tokens[row, : len(whole)] = whole
    positions[row, : len(whole)] = np.arange(len(whole))
    answer[row, len(given) - 1 : len(whole) - 1] = 1.0
  pixels = np.stack([picture.pixels for picture in drawn]) / np.float32(127.5)
  batch = {'tokens': tokens, 'positions': positions, 'answer': answer}
  return {**batch, 'pixels': pixels.astype(np.float32) - np.float32(1)}


def _train(
  what: str,
  config: ModelConfig,
  of_tower: vision.VisionConfig,
  params: dict[str, Any],
  tower: dict[str, Any],
  weights: dict[str, float],
  recipe: train.Recipe,
  learns: str,
) -> dict[str, Any]:
  """Trains the 'text' part, or 'all'; returns {'text': ..., 'tower': ...}."""
  model = Transformer(config, unroll=config.num_layers)
  seeing = vision.Vision(of_tower)
  tx = recipe.optimiser(0.01)

  def loss_of(trained, batch):
    own = {'tower': tower, **trained}
    soft = seeing.apply({'params': own['tower']}, batch['pixels'])
    both = {**own['text'], 'soft_tokens': soft}
    return train.answer_loss(model, {'params': both}, batch)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(trained, state, batch):
    loss, grads = jax.value_and_grad(loss_of)(trained, batch)
    updates, state = tx.update(grads, state, trained)
    return optax.apply_updates(trained, updates), state, loss

  trained = {'text': params}
  if learns == 'all':
    trained['tower'] = tower
  trained = jax.tree.map(jnp.array, trained)  # It is given away.
  state = jax.jit(tx.init)(trained)
  rng = np.random.default_rng([recipe.seed, len(what)])
  progress = train.Progress(what, recipe.steps)
  for i in range(recipe.steps):
    batch = rows_of(rng, weights, recipe.batch)
    with jax.numpy_dtype_promotion('standard'):  # optax needs it.
      trained, state, loss = step(trained, state, batch)
    progress(i, loss)
  return jax.device_get({'tower': tower, **trained})


def stored(tower: dict[str, Any]) -> dict[str, np.ndarray]:
  """The tensors of the vision side, by the names in a folder."""
  found = {}

  def put(name: str, node: dict[str, np.ndarray], shape=(-1,)) -> None:
    if 'scale' in node:
      found[f'{name}.weight'] = node['scale']
    else:
      kernel = node['kernel'].T
      found[f'{name}.weight'] = kernel.reshape(len(kernel), *shape)
    found[f'{name}.bias'] = node['bias']

  start, patch = 'vision_tower.vision_model.', _TOWER['patch_size']
  put(
    f'{start}embeddings.patch_embedding',
    tower['patch_embedding'],
    (3, patch, patch),
  )
  found[f'{start}embeddings.position_embedding.weight'] = tower[
    'position_embedding'
  ]
  put(f'{start}post_layernorm', tower['post_layernorm'])
  for name, node in tower['layers'].items():
    block = {'p': 'self_attn.', 'f': 'mlp.'}.get(name[0], '')
    block = 'self_attn.' if name.endswith('_proj') else block
    for i in range(_TOWER['num_hidden_layers']):
      own = {key: leaf[i] for key, leaf in node.items()}
      put(f'{start}encoder.layers.{i}.{block}{name}', own)
  start = 'multi_modal_projector.mm_'
  found[f'{start}soft_emb_norm.weight'] = tower['soft_norm']['scale']
  found[f'{start}input_projection_weight'] = tower['projection']['kernel']
  return {name: np.ascontiguousarray(x) for name, x in found.items()}


def write_tasks(folder: pathlib.Path, dev: int, test: int, seed: int) -> None:
  """Writes a task for each question that experts learn, on the same images."""
  rng = np.random.default_rng([seed, 1])
  drawn = [pictures.draw(rng) for _ in range(dev + test)]
  names = pictures.write(folder / 'pictures', drawn)
  for question in ('colour', 'shape', 'both'):
    rows = [
      {
        'id': name.removesuffix('.png'),
        'image': f'pictures/{name}',
        'question': f'{question}=',
        'answer': picture.answer(question),
      }
      for name, picture in zip(names, drawn, strict=True)
    ]
    kind = 'rouge_l' if question == 'both' else 'exact_match'
    folders.write_json(
      folder / f'{question}.json',
      {
        'name': question,
        'format': {'kind': kind, 'max_new_tokens': 14},
        'dev': rows[:dev],
        'test': rows[dev:],
      },
    )


def main(_: Sequence[str]) -> None:
  """Builds the folder."""
  begun, seed = time.monotonic(), _SEED.value
  out = pathlib.Path(_OUT.value)
  if out.exists() and any(out.iterdir()):
    raise command.UserError(f'--out={out} is not empty: name a new folder.')
  config, of_tower = start(out / 'base')
  write_tasks(out / 'tasks', _NUM_DEV.value, _NUM_TEST.value, seed)
  pixels = jnp.zeros((1, pictures.SIZE, pictures.SIZE, 3))
  tower = vision.Vision(of_tower).init(jax.random.key(seed), pixels)['params']
  tower = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      x * (x.shape[-2] ** -0.5 / 0.02) if path[-1].key == 'kernel' else x
    ),
    tower,
  )
  logging.info(
    'base: %d parameters, and %d of the vision side',
    config.num_params,
    sum(leaf.size for leaf in jax.tree.leaves(tower)),
  )
  recipe = train.Recipe(_STEPS.value, _BATCH.value, 3e-3, 100, seed)
  found = _train(
    *('base', config, of_tower, train.initial_params(config, seed), tower),
    *(_BASE, recipe, 'all'),
  )
  params = folders.finish_base(
    *(out / 'base', found['text'], config, 'language_model.model.'),
    stored(found['tower']),
  )
  tower = vision.load_vision(out / 'base', of_tower)
  recipe = train.Recipe(_EXPERT_STEPS.value, _BATCH.value, 1e-3, 10, seed)
  for name, weights in _EXPERTS.items():
    found = _train(
      name, config, of_tower, params, tower, weights, recipe, 'text'
    )
    hub.save_checkpoint(
      out / 'experts' / name, found['text'], config, out / 'base'
    )
  logging.info('wrote %s in %.0f s', out, time.monotonic() - begun)


if __name__ == '__main__':
  jax.config.update('jax_numpy_dtype_promotion', 'strict')
  logging.set_verbosity(logging.INFO)
  command.launch(main, quiet=False)
