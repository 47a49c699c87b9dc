"""One file for each verb: what a stage of a recipe does, the same code as the command of that name."""
