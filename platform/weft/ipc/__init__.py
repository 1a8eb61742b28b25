"""An engine in a process of its own, and its clients in others: frames over a Unix socket."""
