"""The commands of ``diffkit audit``, ``mitigate`` and ``locality``; nothing heavy is imported before one runs."""
