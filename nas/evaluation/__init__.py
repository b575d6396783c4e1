"""Accuracy: data sets, training, and the evaluators that turn an architecture into a score."""
