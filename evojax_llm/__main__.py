"""`python -m evojax_llm`, the same as `evojax-llm`."""

from evojax_llm.commands import main

if __name__ == '__main__':
  main.main()
