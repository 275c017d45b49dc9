"""The rows of the parameter table, a file per group."""
