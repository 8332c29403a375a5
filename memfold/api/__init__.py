"""The doors: the client in its two forms and the command line."""
