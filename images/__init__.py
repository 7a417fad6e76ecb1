"""What runs in containers: a folder an image, with its Dockerfile and its locked requirements."""
