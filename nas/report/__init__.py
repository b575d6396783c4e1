"""What people look at: fronts, plots, facts and the report."""
