"""The error raised for a model or adapter folder that cannot be used."""


class ModelError(ValueError):
  """A folder or configuration cannot be used; says what, where and why."""
