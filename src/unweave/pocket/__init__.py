"""An offline default with known truth: a small image world, and small models trained on it."""
