"""What the steps share: settings, rendering, the deployment's state, weights, and the clients of the outside."""
