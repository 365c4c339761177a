"""The trainer: one program that fine-tunes a model and knows nothing of Kubernetes."""
