"""The contract between people, the operator and the trainer: pydantic only, no I/O."""
