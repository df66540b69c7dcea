"""The commands of ``diffkit ttsnap``, one a file; nothing heavy is imported before a command runs."""
