"""A plug-in that ends the process that imports it."""

raise SystemExit("exits: goodbye")
