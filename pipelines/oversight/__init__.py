"""A deployment as a person looks at it: what a run would do and needs (plan.py), how it is (status.py), and how it is
taken away (destroy.py)."""
