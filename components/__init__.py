"""The steps of the pipelines, one a folder: component.py is what KFP sees, step.py does the work."""
