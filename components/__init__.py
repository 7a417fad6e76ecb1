"""One step of a pipeline a folder: component.py is its KFP interface, the module beside it the logic.

settings/ holds what a deployment file may say, identity.py how a generation gets its name, record.py what a
deployment remembers, and clients/ the only door to the outside."""
