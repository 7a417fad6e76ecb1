"""Runs on Vertex AI Pipelines: what is asked for (request.py), whether it can be (preflight.py), how a run goes on
(follow.py), and the deployment's schedule (schedule.py)."""
