"""Puts a new generation under load, and sees its autoscaler bring pods and take them away."""
