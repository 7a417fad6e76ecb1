"""unit/ (seconds) · golden/ (compiled pipelines, manifests) · contract/ (each emulator, by the real client) ·
scenarios/ (whole runs and refreshes) · faults/ (failures, acted out) · bench/ (ratios, not tests)."""
