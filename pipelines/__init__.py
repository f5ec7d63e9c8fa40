"""One file a job, their configuration and the command line."""
