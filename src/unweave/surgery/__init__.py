"""Mean ablation written into a model's own weights."""
