"""What a project needs once, before any pipeline runs in it: APIs, accounts with the least roles, the component image."""
