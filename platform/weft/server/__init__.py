"""Server processes: one that is all, or a supervisor with an engine and several gateway workers."""
