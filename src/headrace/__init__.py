"""The command line: parses, calls flows, plans and profiling, prints."""
