"""The error that every refusal of a model or adapter folder raises."""


class ModelError(ValueError):
  """A folder or configuration cannot be used; says what, where and why."""
