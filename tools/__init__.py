"""The command line tools; each is a program, and these modules are what they share."""
