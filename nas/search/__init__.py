"""The search: budgets, an Optuna study with its samplers, workers that score candidates, the choice of the winner."""
