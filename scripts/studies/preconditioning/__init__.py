"""Models of other predictions, trained with equal budgets, unguided and autoguided."""
