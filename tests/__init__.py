"""unit/ (seconds) · golden/ (compiled pipelines, manifests) · contract/ (each emulator, by the real client) ·
scenarios/ (whole runs and refreshes) · real/ (the same against real software) · bench/ (ratios, not tests)."""
