"""What a project needs once, before a pipeline runs in it: APIs, accounts with the least roles, the component image."""
