"""The CPU's operators in C++: what torch composes of many passes, in one. Float32 only."""
