"""A byte-level tokenizer for random models, trained on task files."""

from collections.abc import Iterator
from collections.abc import Sequence

from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from experiments.pocket.tokenizer_files import SPECIAL


def train(texts: Sequence[str], vocab_size: int, folder: str) -> None:
  """Writes a byte-level BPE tokenizer with Gemma's special tokens."""
  import tokenizers
  from tokenizers import decoders
  from tokenizers import pre_tokenizers
  from tokenizers import trainers
  import transformers

  def lines() -> Iterator[str]:
    for text in texts:
      for item in load_task(text, Rules(allow_overlap=True)).dev:
        yield ' '.join([item.question, *(t for _, t in item.choices or ())])

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    lines(),
    trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=list(SPECIAL[:6]),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token='<pad>',
    eos_token='<eos>',
    bos_token='<bos>',
    unk_token='<unk>',
  ).save_pretrained(folder)
