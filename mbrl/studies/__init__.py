"""Studies that measure the framework. Nothing but the command line imports them, and lazily."""
