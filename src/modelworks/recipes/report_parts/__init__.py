"""What the report is made of: facts read from a run, plots, sections, the page."""
