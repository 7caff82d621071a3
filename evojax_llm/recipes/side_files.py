"""What stands beside the weights: config.json, tokenizer, template, card."""

from collections.abc import Iterable
import json
import pathlib
import re
import shutil
from typing import Any

import evojax_llm
from evojax_llm import files
from evojax_llm.models import folders
from evojax_llm.models.errors import ModelError
from evojax_llm.recipes.model_folder import LAYER_COUNTS
from evojax_llm.recipes.model_folder import ModelFolder
from evojax_llm.recipes.plan import Plan
from evojax_llm.recipes.recipe import DTYPES
from evojax_llm.recipes.recipe import RecipeError

RECIPE_FILE = 'mergekit_config.yml'
_TOKENIZER = re.compile(
  r'tokenizer.*|special_tokens_map.*|added_tokens.*|vocab\..*|merges\.txt|'
  r'.*\.model|chat_template.*|.*\.jinja'
)
# Weights, and what is written anew.
_LEFT_OUT = re.compile(
  r'.*\.(safetensors|bin|pt|pth|ckpt|gguf|onnx|h5|msgpack|tmp)(\.index\.json)?|'
  r'README\.md|config\.json|mergekit_config\.yml|\..*',
  re.I,
)
_MOST_BYTES = 1 << 27
_PATTERNS = {'gemma2': 2, 'gemma3_text': 6, 'gemma3': 6}
_TEMPLATES = {
  'chatml': (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  )
}


def check(plan: Plan) -> None:
  """Refuses tokenizers and templates that cannot be written.

  Raises:
    RecipeError: the vocabularies do not agree, or there is no such template.
  """
  _tokenizer_folder(plan)
  _template(plan)


def write(plan: Plan, folder: pathlib.Path) -> None:
  """Writes all files of a merged folder but its weights."""
  kept = plan.like.path
  tokenizer = _tokenizer_folder(plan)
  for source, wanted in ((kept, False), (tokenizer, True)):
    for file in sorted(source.iterdir()):
      if bool(_TOKENIZER.fullmatch(file.name)) == wanted and _is_kept(file):
        shutil.copyfile(file, folder / file.name)
  more = tokenizer / 'additional_chat_templates'
  if more.is_dir():
    (folder / more.name).mkdir()
    for file in more.glob('*.jinja'):
      shutil.copyfile(file, folder / more.name / file.name)
  template = _template(plan)
  if template is not None:
    (folder / 'chat_template.jinja').write_text(template, encoding='utf-8')
    path = folder / 'tokenizer_config.json'
    if path.is_file():
      raw = folders.read_json(path)
      raw.pop('chat_template', None)  # The file goes first.
      folders.write_json(path, raw)
  folders.write_json(folder / 'config.json', config(plan))
  (folder / RECIPE_FILE).write_text(plan.recipe.text, encoding='utf-8')
  (folder / 'README.md').write_text(card(plan), encoding='utf-8')


def _is_kept(file: pathlib.Path) -> bool:
  if _LEFT_OUT.fullmatch(file.name) or not file.is_file():
    return False
  return file.stat().st_size <= _MOST_BYTES


def config(plan: Plan) -> dict[str, Any]:
  """Returns config.json: that of the base, with the layers of the result."""
  raw = json.loads(json.dumps(plan.like.config))
  inner = raw.get('text_config')
  text = inner if isinstance(inner, dict) else raw
  old, new = plan.like.layers, len(plan.layers)
  order = [made[0] for made in plan.layers]
  if any(n != i for i, (_, n) in enumerate(order)) or old != new:
    for key in LAYER_COUNTS:
      if key in text:
        text[key] = new
    kind = text.get('model_type')
    if 'layer_types' not in text and kind in _PATTERNS:
      # What follows from the number of a layer must go with the layer.
      every = text.get('sliding_window_pattern') or _PATTERNS[kind]
      kinds = ('full_attention', 'sliding_attention')
      text['layer_types'] = [kinds[(n + 1) % every > 0] for _, n in order]
    for key, value in plan.like.text_config.items():
      if 'layer' in key and isinstance(value, list) and len(value) == old:
        lists = [folder.text_config.get(key) for folder, _ in order]
        pairs = list(zip(lists, order, strict=True))
        if all(isinstance(x, list) and len(x) > n for x, (_, n) in pairs):
          text[key] = [x[n] for x, (_, n) in pairs]
  dtypes = [o.dtype for o in plan.outputs if o.dtype in DTYPES.values()]
  if dtypes:
    most = max(set(dtypes), key=dtypes.count)
    name = next(name for name, code in DTYPES.items() if code == most)
    for part in (raw, text):
      for key in ('dtype', 'torch_dtype'):
        if part is raw or key in part:
          part[key] = name
  return raw


def _tokenizer_folder(plan: Plan) -> pathlib.Path:
  """The folder whose tokenizer the result has."""
  recipe, wanted = plan.recipe, plan.recipe.tokenizer
  if wanted is None:
    return plan.like.path
  if wanted in ('base', 'union'):
    path = plan.like.path
  elif wanted in plan.folders:
    path = plan.folders[wanted].path
  else:
    path = folders.existing_folder(wanted, 'a folder with a tokenizer')
  own = vocabulary(path)
  for folder in _embedded(plan):
    other = vocabulary(folder.path)
    if other is None or own is None or other == own:
      continue
    moved = [t for t in own.keys() & other.keys() if own[t] != other[t]]
    only = sorted(other.keys() - own.keys()) or sorted(
      own.keys() - other.keys()
    )
    why = f'{moved[0]!r} has two ids' if moved else f'{only[0]!r} is in one'
    raise RecipeError(
      f'{recipe.path}: tokenizer_source: {wanted}: the vocabularies differ: '
      f'{path.name} has {len(own)} tokens, {folder.name} {len(other)}, and '
      f'{why} alone. Rows of embeddings are not moved: resize the models to '
      'one vocabulary first; or merge the layers alone, with every weight (or '
      't) as [{filter: layers, value: ...}]; or leave tokenizer_source out, '
      "which keeps the base's tokenizer and trusts it."
    )
  return path


def _embedded(plan: Plan) -> Iterable[ModelFolder]:
  """The folders whose embedding is in the result."""
  name = plan.like.embedding
  for output in plan.outputs:
    if output.name == name:
      return [folder for folder, _ in output.parents]
  return []


def vocabulary(path: pathlib.Path) -> dict[str, int] | None:
  """Ids by token, of tokenizer.json; None where there is none."""
  file = path / 'tokenizer.json'
  if not file.is_file():
    return None
  raw = files.read_object(file, ModelError)
  model = raw.get('model')
  vocab = model.get('vocab') if isinstance(model, dict) else None
  if isinstance(vocab, list):  # Of Unigram: [token, score] in order.
    vocab = {
      entry[0]: i
      for i, entry in enumerate(vocab)
      if isinstance(entry, list) and entry and isinstance(entry[0], str)
    }
  if not isinstance(vocab, dict):
    return None
  added = raw.get('added_tokens')
  for entry in added if isinstance(added, list) else ():
    if isinstance(entry, dict) and isinstance(entry.get('content'), str):
      vocab[entry['content']] = entry.get('id')
  return vocab


def _template(plan: Plan) -> str | None:
  """The chat template that a recipe asks for; None for the tokenizer's own."""
  wanted = plan.recipe.chat_template
  if wanted is None:
    return None
  if wanted == 'auto':
    found = [_template_of(f.path) for f in plan.folders.values()]
    found = [template for template in found if template]
    return max(found, key=found.count) if found else None
  if '{{' in wanted or '{%' in wanted:
    return wanted
  if wanted not in _TEMPLATES:
    raise RecipeError(
      f"{plan.recipe.path}: chat_template: {wanted[:80]!r}; expected 'auto', "
      f'{", ".join(map(repr, _TEMPLATES))} or the text of a Jinja template.'
    )
  return _TEMPLATES[wanted]


def _template_of(path: pathlib.Path) -> str | None:
  file = path / 'chat_template.jinja'
  if file.is_file():
    return files.read_text(file, ModelError)
  file = path / 'tokenizer_config.json'
  stated = folders.read_json(file) if file.is_file() else {}
  template = stated.get('chat_template')
  return template if isinstance(template, str) else None


def card(plan: Plan) -> str:
  """Returns README.md: what was merged, how, and by which recipe."""
  named = [folders.model_name(f.path) for f in plan.folders.values()]
  front = {
    'base_model': list(dict.fromkeys(named)),
    'library_name': 'transformers',
    'tags': ['evojax_llm', 'merge'],
  }
  # JSON is YAML, and quotes what needs it.
  lines = [f'{key}: {json.dumps(value)}' for key, value in front.items()]
  base = plan.recipe.base
  sources = [
    f'- {folder.name}, {folder.layers} layers' + (', the base' * (ref == base))
    for ref, folder in plan.folders.items()
  ]
  longest = max(
    (len(run) for run in re.findall('`+', plan.recipe.text)), default=0
  )
  fence = '`' * max(3, longest + 1)
  return (
    '\n'.join(
      [
        *('---', *lines, '---', ''),
        *(f'# Merged by {plan.recipe.method.name}', ''),
        f'Made by evojax_llm {evojax_llm.__version__} of:',
        *('', *sources, ''),
        *('## Recipe', '', f'{fence}yaml', plan.recipe.text.rstrip(), fence),
        *('', *plan.notes),
      ]
    ).rstrip()
    + '\n'
  )
