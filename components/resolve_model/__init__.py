"""Finds, by reading alone, what a revision is and whether there is anything to do."""
