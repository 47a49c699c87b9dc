"""The blind loop and what it needs: optimisers, schedules, hooks, checkpoints, the plan."""
