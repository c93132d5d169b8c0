"""The Doorward server and its command line."""
